"""Greedy coordinate gradient (GCG): search for tokens in front of the question that bring answers out."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from probe.attacks.facts import Facts, Studied, prepared
from probe.attacks.placeholders import EMBEDDING, Placeholders, with_placeholders
from probe.attacks.recovery import AttackOutcome, Recovery, compared
from probe.data import Batch, encode
from probe.hooks import edited
from probe.modes import evaluating
from probe.objectives.logprobs import predicted_targets, target_logprobs
from probe.objectives.token import nll
from probe.sites import unwrapped
from probe.train.adversary import Perturb

TokensP = Int[Tensor, " P"]
CandidatesCP = Int[Tensor, "C P"]
LossC = Float[Tensor, " C"]


@dataclass(frozen=True)
class Search:
    """How GCG searches.

    Args:
        length: tokens in front of the prompt.
        steps: substitutions tried one after another; 0 leaves the first tokens.
        top_k: replacements considered at each place, by gradient; published 256.
        candidates: replacements whose loss is computed a step; published 512.
        seed: fixes the first tokens and what is drawn.

    Raises:
        ValueError: a number out of range.
    """

    length: int
    steps: int
    top_k: int
    candidates: int
    seed: int
    batch_size: int = field(default=256, kw_only=True)
    """Texts per forward pass; changes nothing but memory."""

    def __post_init__(self) -> None:
        if self.steps < 0 or min(self.length, self.top_k, self.candidates, self.batch_size) < 1:
            raise ValueError(f"expected steps of at least 0 and the other numbers of at least 1, got {self}")


def gcg(
    model: nn.Module,
    study: Facts | Studied,
    *,
    length: int,
    steps: int,
    top_k: int = 256,
    candidates: int = 512,
    seed: int = 0,
    batch_size: int = 256,
    retrained: nn.Module | None = None,
    progress: bool = False,
) -> Recovery:
    """One string of tokens for all questions that lowers the NLL of the shown answers (Zou et al., arXiv 2307.15043).

    Each step takes the loss's gradient with respect to the one-hot tokens, keeps the ``top_k`` most promising
    replacements at each place, draws ``candidates`` of them and moves to the best. Unlike in the paper a step that
    would raise the loss is not taken, so the loss never rises. Tokens are placed as ids: as text they may be split
    otherwise, which ``survives_text`` tells.

    Args:
        model: its weights are not changed.
        study: a study, whose forget rows are divided (``facts_of``) and whose retrained model is compared with, or
            your own ``Facts``; searched on the shown rows, all at once, scored on the held-out ones.
        length, steps, top_k, candidates, seed, batch_size: as in ``Search``.
        retrained: a model that never knew the facts; it gets a search of its own.
        progress: show a bar.

    Returns:
        ``found`` holds ``losses``, before the first step and after each, ``tokens``, ``text`` and ``survives_text``.

    Raises:
        ValueError: a number out of range, or a tokenizer without room for tokens.

    >>> found = probe.gcg(s.original, s, length=2, steps=1, top_k=8, candidates=4)
    >>> len(found.model.found["tokens"]), len(found.model.found["losses"])
    (2, 2)
    """
    search = Search(length, steps, top_k, candidates, seed, batch_size=batch_size)
    facts, never = prepared(study, retrained)
    room = with_placeholders(facts.tokenizer, facts.template, search.length)
    batch = encode(facts.tokenizer, facts.shown, template=room.template, max_length=facts.max_length + search.length)

    def act(one: nn.Module) -> AttackOutcome:
        before = facts.score(one, facts.held, facts.template)
        weight_VD = _embedding(one)
        tokens_P, losses = _search(one, facts.tokenizer, room, batch.to(weight_VD.device), search, progress)
        with edited(one, room.edits(_embedded(one, tokens_P))):
            after = facts.score(one, facts.held, room.template)
        text = facts.tokenizer.decode(tokens_P.tolist())
        again = facts.tokenizer(text, add_special_tokens=False)["input_ids"]
        found = {"losses": losses, "tokens": tuple(tokens_P.tolist()), "text": text}
        return AttackOutcome(before, after, {**found, "survives_text": again == tokens_P.tolist()})

    settings = {"length": search.length, "steps": search.steps, "top_k": search.top_k} | {
        "candidates": search.candidates,
        "seed": search.seed,
    }
    return compared("GCG", settings, act, facts, model, never)


def _search(
    model: nn.Module, tokenizer: Any, room: Placeholders, batch: Batch, search: Search, progress: bool
) -> tuple[TokensP, tuple[float, ...]]:
    weight_VD = _embedding(model)
    generator = torch.Generator().manual_seed(search.seed)
    usable_V = torch.ones(min(len(tokenizer), len(weight_VD)), dtype=torch.bool)
    usable_V[[i for i in tokenizer.all_special_ids if i < len(usable_V)]] = False
    pool = usable_V.nonzero()[:, 0]
    tokens_P = pool[torch.randint(len(pool), (room.length,), generator=generator)].to(weight_VD.device)
    with evaluating(model):
        losses = [float(_losses(model, batch, room, tokens_P[None], search.batch_size)[0])]
        for _ in tqdm(range(search.steps), desc="GCG", disable=not progress, leave=False):
            slope_PV = _slopes(model, batch, room, tokens_P)
            slope_PV[:, ~_padded(usable_V, slope_PV.shape[1]).to(slope_PV.device)] = torch.inf
            best_PK = slope_PV.topk(min(search.top_k, len(pool)), dim=1, largest=False).indices
            place_C = torch.randint(room.length, (search.candidates,), generator=generator)
            which_C = torch.randint(best_PK.shape[1], (search.candidates,), generator=generator)
            tried_CP = tokens_P.repeat(search.candidates, 1)
            tried_CP[torch.arange(search.candidates), place_C] = best_PK[place_C, which_C]
            loss_C = _losses(model, batch, room, tried_CP, search.batch_size)
            winner = int(loss_C.argmin())
            if float(loss_C[winner]) < losses[-1]:
                tokens_P = tried_CP[winner]
            losses.append(min(losses[-1], float(loss_C[winner])))
    return tokens_P, tuple(losses)


def _slopes(model: nn.Module, batch: Batch, room: Placeholders, tokens_P: TokensP) -> Float[Tensor, "P V"]:
    """d loss / d one-hot: how the loss would move, to first order, if a token were replaced."""
    weight_VD = _embedding(model)
    rows = _with_tokens(batch, room, tokens_P[None])
    shape = (*rows.tokens_BT.shape, weight_VD.shape[1])
    with torch.enable_grad():
        zero_BTD = torch.zeros(shape, device=weight_VD.device, dtype=weight_VD.dtype, requires_grad=True)
        with edited(model, {EMBEDDING: Perturb(zero_BTD)}):
            (slope_BTD,) = torch.autograd.grad(nll(model, rows), [zero_BTD])
    slope_PD = slope_BTD[:, room.start : room.start + room.length].sum(0)
    return slope_PD.float() @ weight_VD.detach().float().T


@torch.no_grad()
def _losses(model: nn.Module, batch: Batch, room: Placeholders, tried_CP: CandidatesCP, batch_size: int) -> LossC:
    """The NLL of all rows under each candidate: the mean over the rows' target tokens."""
    n_targets = predicted_targets(batch).sum()
    at_once = max(1, batch_size // len(batch))
    found = []
    for some_CP in tried_CP.split(at_once):
        rows = _with_tokens(batch, room, some_CP)
        found.append(-target_logprobs(model, rows).sum(1).reshape(len(some_CP), -1).sum(1) / n_targets)
    return torch.cat(found)


def _with_tokens(batch: Batch, room: Placeholders, tried_CP: CandidatesCP) -> Batch:
    """All rows once for each candidate, with its tokens in front."""
    rows = batch.select(torch.arange(len(batch)).repeat(len(tried_CP)))
    tokens_BT = rows.tokens_BT.clone()
    tokens_BT[:, room.start : room.start + room.length] = tried_CP.repeat_interleave(len(batch), 0)
    return replace(rows, tokens_BT=tokens_BT, warn=False)


def _embedded(model: nn.Module, tokens_P: TokensP) -> Float[Tensor, "P D"]:
    """What the embedding module gives for the tokens, any scaling of its own included."""
    inner: Any = unwrapped(model)
    with torch.no_grad():
        return inner.get_input_embeddings()(tokens_P[None])[0]


def _embedding(model: nn.Module) -> Tensor:
    inner: Any = unwrapped(model)
    return inner.get_input_embeddings().weight


def _padded(usable_V: Tensor, size: int) -> Tensor:
    """Rows of the embedding beyond the tokenizer's vocabulary are no tokens."""
    return torch.nn.functional.pad(usable_V, (0, size - len(usable_V)))
