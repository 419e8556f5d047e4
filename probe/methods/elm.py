"""ELM: move the next-token distribution away from what an expert would say, keep it elsewhere, stay fluent.

>>> prefaces = {"expert_ids": (5, 6), "novice_ids": (7,), "eta": 1000, "leading": 1}
>>> unlearned = study.unlearn("elm", **prefaces, retain_weight=1, lr=3e-4, steps=2, batch_size=4)
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from probe.data import Batch, Split
from probe.methods.method import method
from probe.methods.published import Published
from probe.methods.unlearn import check_original
from probe.methods.words import meant
from probe.modes import evaluating
from probe.objectives.distribution import ELMErase
from probe.objectives.logprobs import before_targets
from probe.objectives.representation import real_tokens
from probe.objectives.retain import ForwardKL
from probe.objectives.token import nll
from probe.train import History, Term, minimise


@method(
    "rejection",
    "CE(pi0 (novice/expert)^eta, pi) + w KL(original || model) + v NLL(fluent text)",
    "Gandikota et al., arXiv 2410.02760",
    published={
        "zephyr-7b": Published(
            "code of Gandikota et al., arXiv 2410.02760, WMDP, Zephyr-7B; adapters of rank 256, 3000 samples",
            {
                "eta": 1000.0,
                "positions": "all",
                "forget_weight": 1.0,
                "retain_weight": 1.0,
                "fluency_weight": 1.0,
                "gamma": 3.0,
                "lr": 5e-5,
            },
        )
    },
)
def elm(
    model: nn.Module,
    split: Split,
    *,
    original: nn.Module,
    expert_ids: tuple[int, ...],
    novice_ids: tuple[int, ...],
    eta: float,
    leading: int,
    retain_weight: float,
    forget_weight: float = 1.0,
    fluency: Batch | None = None,
    fluency_weight: float = 1.0,
    fluent_tokens: int = 0,
    diversion_ids: tuple[int, ...] = (),
    gamma: float = 3.0,
    eos_id: int | None = None,
    positions: Literal["answers", "all"] = "answers",
    **training: Any,
) -> History:
    """forget_weight * ELMErase + retain_weight * KL(original || model) + fluency_weight * NLL of fluent text.

    Gandikota et al., arXiv 2410.02760; see ``probe.objectives.distribution.ELMErase`` for the first.

    Args:
        model: trained in place; published with adapters (``probe.train.lora``).
        split: forget and retain rows.
        original: the model before unlearning.
        expert_ids, novice_ids: token ids of the two prefaces, without bos.
        eta: strength at a row's last token.
        leading: tokens that stay in front of a preface: 1 where rows begin with bos.
        retain_weight, forget_weight: of the two terms.
        fluency: text that the guided original wrote; made by ``fluent_text`` on the forget prompts if
            ``fluent_tokens`` is above 0; left out otherwise.
        fluency_weight: of that text's NLL.
        fluent_tokens, diversion_ids, gamma, eos_id: see ``fluent_text``; the published code draws 100 to 300 tokens.
        positions: where the first two terms compare distributions: before each token of ``"answers"``, or at ``"all"``
            real tokens, prompts and each row's last token included, as the published code does.
        training: keyword arguments of ``minimise``.

    Raises:
        ValueError: fluent text that is both given and to be made, or what the objective, ``fluent_text`` and
            ``minimise`` raise.
    """
    check_original(model, original)
    if fluency is not None and fluent_tokens:
        raise ValueError("fluent text is given and is to be made; give fluency or fluent_tokens, not both")
    if fluent_tokens:
        fluency = fluent_text(
            original,
            split.forget,
            expert_ids=expert_ids,
            novice_ids=novice_ids,
            diversion_ids=diversion_ids,
            gamma=gamma,
            tokens=fluent_tokens,
            leading=leading,
            seed=training["seed"],
            eos_id=eos_id,
        )
    where = meant("positions", positions, {"answers": before_targets, "all": real_tokens})
    erased = ELMErase(original, expert_ids, novice_ids, eta, leading, where)
    terms = [
        Term(forget_weight, erased, split.forget, "forget"),
        Term(retain_weight, ForwardKL(original, where), split.retain, "retain"),
    ]
    if fluency is not None:
        terms.append(Term(fluency_weight, nll, fluency, "fluency"))
    return minimise(model, terms, **training)


def fluent_text(
    original: nn.Module,
    prompts: Batch,
    *,
    expert_ids: tuple[int, ...],
    novice_ids: tuple[int, ...],
    diversion_ids: tuple[int, ...],
    gamma: float,
    tokens: int,
    leading: int,
    seed: int,
    eos_id: int | None = None,
) -> Batch:
    """y_t ~ softmax(log pi0(.|x d y) - gamma [log pi0(.|expert y) - log pi0(.|novice y)]): text to stay fluent on.

    Gandikota et al., arXiv 2410.02760, as the published code reads: x is a row's prompt, d a sentence that changes the
    subject, and the prefaces are followed by what was drawn, not by the prompt.

    Args:
        original: the model before unlearning; run in eval mode, with a cache, row by row.
        prompts: rows whose prompts (the first ``prompt_B`` tokens) are continued.
        expert_ids, novice_ids: token ids of the two prefaces, without bos.
        diversion_ids: token ids of the sentence put behind each prompt; may be empty.
        gamma: strength of the guidance, at least 0; published 3. 0 samples from the original.
        tokens: most tokens drawn a row, at least 1.
        leading: of each row's first tokens, how many stay in front of a preface.
        seed: fixes the draws.
        eos_id: ends a row's text, as its last token; None draws ``tokens`` tokens.

    Returns:
        prompt, diversion and drawn text, with everything behind the prompt as targets.

    Raises:
        ValueError: a negative gamma, no tokens, or a preface with nothing in it and nothing in front of it.
    """
    if gamma < 0 or tokens < 1:
        raise ValueError(f"gamma must be at least 0 and tokens at least 1, got {gamma} and {tokens}")
    if leading < 1 and not (expert_ids and novice_ids):
        raise ValueError("a preface is empty and leading is 0, so nothing stands before the first drawn token")
    generator = torch.Generator().manual_seed(seed)
    written: list[list[int]] = []
    with evaluating(original), torch.no_grad():
        for b, length in enumerate(prompts.prompt_B.tolist()):
            row = prompts.tokens_BT[b, :length].tolist()
            start = [*row, *diversion_ids]
            contexts = [start, [*row[:leading], *expert_ids], [*row[:leading], *novice_ids]]
            written.append(start + _drawn(original, contexts, gamma, tokens, eos_id, generator))
    return _as_batch(written, prompts)


def _drawn(
    original: Any, contexts: list[list[int]], gamma: float, tokens: int, eos_id: int | None, generator: torch.Generator
) -> list[int]:
    device = next(original.parameters()).device
    new, pasts = contexts, [None, None, None]
    drawn: list[int] = []
    while len(drawn) < tokens:
        logps: list[Tensor] = []
        for k, ids in enumerate(new):
            given = {} if pasts[k] is None else {"past_key_values": pasts[k]}
            output = original(input_ids=torch.tensor([ids], device=device), use_cache=True, **given)
            pasts[k] = output.past_key_values
            logps.append(torch.log_softmax(output.logits[0, -1].float(), -1).cpu())
        plain_V, expert_V, novice_V = logps
        guided_V = torch.softmax(plain_V - gamma * (expert_V - novice_V), -1)
        drawn.append(int(torch.multinomial(guided_V, 1, generator=generator)))
        if drawn[-1] == eos_id:
            break
        new = [drawn[-1:]] * 3
    return drawn


def _as_batch(written: list[list[int]], prompts: Batch) -> Batch:
    length_B = torch.tensor([len(ids) for ids in written])
    place_T = torch.arange(int(length_B.max()))
    tokens_BT = torch.zeros(len(written), len(place_T), dtype=torch.long)
    for b, ids in enumerate(written):
        tokens_BT[b, : len(ids)] = torch.tensor(ids)
    prompt_B = prompts.prompt_B.cpu()
    attention_BT = place_T[None] < length_B[:, None]
    target_BT = attention_BT & (place_T[None] >= prompt_B[:, None])
    return Batch(tokens_BT, target_BT, attention_BT, prompts.group_B.cpu(), prompt_B)
