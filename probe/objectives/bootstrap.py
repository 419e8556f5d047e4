"""Push down what the model believes instead of the target too: BS-T, BSTW and BS-S (Li et al., arXiv 2510.19422)."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from probe.axes import LogpBT, Scalar
from probe.data import Batch
from probe.objectives.logprobs import before_targets, logits_at, next_tokens, scattered
from probe.objectives.objective import Objective
from probe.objectives.original import OriginalAnswers, original_logprobs
from probe.objectives.token import Normalise, check_positive, sequence_mean


@dataclass(frozen=True)
class BST:
    """L = mean sum_v t_v log pi_v, t = (1 - lambda) e_y + lambda sg[softmax(the k largest logits)]: BS-T.

    Li et al., arXiv 2510.19422; the code averages over each answer, then over answers (SM), where the tutorial's
    slide has a sum. Beliefs outside the k largest are exactly 0. lambda = 0 is sequence-mean gradient ascent.

    Args:
        weight: lambda in [0, 1]; published configuration 0.2 (0.5 in the code's defaults).
        k: how many tokens a belief spans; published 20.
        normalise: how tokens are averaged.
        detach: whether beliefs carry no gradient (sg), as published; the code can also leave it to them.

    Raises:
        ValueError: a weight outside [0, 1], or k below 1 or above the vocabulary.

    >>> loss = probe.BST(weight=0.5, k=3)
    >>> bool(loss(s.retrained, s.split.forget) < 0)
    True
    """

    weight: float
    k: int
    normalise: Normalise = sequence_mean
    detach: bool = True

    def __post_init__(self) -> None:
        _check_share(self.weight)
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}")

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        return self.normalise(self.values(model, batch)[1], before_targets(batch))

    def values(self, model: nn.Module, batch: Batch) -> tuple[LogpBT, LogpBT]:
        """log pi of each target, and sum_v t_v log pi_v, both where it is predicted from; 0 elsewhere."""
        positions_BT = before_targets(batch)
        logits_NV = logits_at(model, batch, positions_BT)
        if self.k > logits_NV.shape[1]:
            raise ValueError(f"k is {self.k} and the vocabulary has {logits_NV.shape[1]} tokens; lower k")
        logp_NV = torch.log_softmax(logits_NV, -1)
        target_N = logp_NV.gather(-1, next_tokens(batch, positions_BT)[:, None])[:, 0]
        top = (logits_NV.detach() if self.detach else logits_NV).topk(self.k, -1)
        belief_N = (torch.softmax(top.values, -1) * logp_NV.gather(-1, top.indices)).sum(-1)
        value_N = (1 - self.weight) * target_N + self.weight * belief_N
        return scattered(target_N, positions_BT), scattered(value_N, positions_BT)


@dataclass(frozen=True)
class BSTW:
    """L = mean_b sg[2 sigmoid(beta log pi(y|x) / pi0(y|x))] sum_i sum_v t_iv log pi_iv: BS-T with the weights of NPO.

    BSTW of the code of Li et al., arXiv 2510.19422 (not in the paper), t as in ``BST``; sums over answers (SS), and the
    weight has no gradient. lambda = 0 has the gradient of NPO.

    Args:
        original: the model before unlearning, frozen, or an ``OriginalAnswers`` made from it.
        weight: lambda in [0, 1]; the code's configuration has 0.2.
        k: how many tokens a belief spans; the code's configuration has 20.
        beta: inverse temperature of the weight, above 0; the code's configuration has 0.1.
        detach: as for ``BST``.

    Raises:
        ValueError: a beta that is not positive, or what ``BST`` raises.

    >>> loss = probe.BSTW(s.original, weight=0.5, k=3, beta=0.1)
    >>> tuple(loss(s.original, s.split.forget).shape)
    ()
    """

    original: nn.Module | OriginalAnswers = field(repr=False)
    weight: float
    k: int
    beta: float
    detach: bool = True

    def __post_init__(self) -> None:
        check_positive("beta", self.beta)
        BST(self.weight, self.k)

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        target_BT, value_BT = BST(self.weight, self.k, detach=self.detach).values(model, batch)
        ratio_B = target_BT.detach().sum(1) - original_logprobs(self.original, batch).sum(1)
        return (2 * torch.sigmoid(self.beta * ratio_B) * value_BT.sum(1)).mean()


@dataclass(frozen=True)
class BSS:
    """L = (1 - lambda) L(batch) + lambda L(answers drawn from the current model for its prompts): BS-S.

    Li et al., arXiv 2510.19422. The tutorial's slide has BS-T for L, the code plain token-mean GA. The code draws
    every second epoch and then reuses the samples of one batch for all; here ``draw`` is asked at every call.
    lambda = 0 is L(batch).

    Args:
        objective: L: ``ga`` as the code, ``BST(...)`` as the slide.
        weight: lambda in [0, 1]; published 0.5.
        draw: ``(model, batch) -> batch of samples``, such as ``Sampled``.

    Raises:
        ValueError: a weight outside [0, 1].

    >>> draw = probe.Sampled(1, max_new_tokens=4, eos_id=s.tokenizer.eos_token_id, generator=torch.Generator())
    >>> loss = probe.BSS(probe.ga, weight=0.5, draw=draw)
    >>> tuple(loss(s.original, s.split.forget).shape)
    ()
    """

    objective: Objective
    weight: float
    draw: Callable[[nn.Module, Batch], Batch] = field(repr=False)

    def __post_init__(self) -> None:
        _check_share(self.weight)

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        given = (1 - self.weight) * self.objective(model, batch)
        if self.weight == 0:
            return given
        return given + self.weight * self.objective(model, self.draw(model, batch))


@dataclass(frozen=True, eq=False)
class Sampled:
    """n answers a prompt, drawn token by token from softmax(z / T) until eos; no cut of the tail, no penalties.

    Args:
        n: answers a prompt; published 3.
        max_new_tokens: longest answer, eos included; published 200.
        eos_id: the token that ends an answer; it is a target too.
        generator: source of randomness on the CPU; it moves on with every call.
        temperature: T, above 0; published 1.

    Raises:
        ValueError: a size below 1, or a temperature that is not positive; when called, prompts that leave no room
            for ``max_new_tokens`` in the model's context.

    >>> draw = probe.Sampled(1, max_new_tokens=4, eos_id=s.tokenizer.eos_token_id, generator=torch.Generator())
    >>> len(draw(s.original, s.split.forget)) == len(s.split.forget)
    True
    """

    n: int
    max_new_tokens: int
    eos_id: int
    generator: torch.Generator = field(repr=False)
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature)
        if self.n < 1 or self.max_new_tokens < 1:
            raise ValueError(f"n and max_new_tokens must be at least 1, got {self.n} and {self.max_new_tokens}")

    def __call__(self, model: nn.Module, batch: Batch) -> Batch:
        device, pad = batch.tokens_BT.device, self.eos_id
        prompts = [row_T[:p] for row_T, p in zip(batch.tokens_BT, batch.prompt_B.tolist(), strict=True)]
        prompts = [prompt for prompt in prompts for _ in range(self.n)]
        longest = max(map(len, prompts))
        config = getattr(model, "config", None)
        limit = getattr(config.get_text_config(), "max_position_embeddings", None) if config is not None else None
        if limit is not None and longest + self.max_new_tokens > limit:
            raise ValueError(
                f"{longest} prompt tokens and {self.max_new_tokens} new ones exceed the model's {limit} positions; "
                "lower max_new_tokens"
            )
        left = torch.full((len(prompts), longest), pad, dtype=torch.long, device=device)
        real = torch.zeros_like(left, dtype=torch.bool)
        for i, prompt in enumerate(prompts):
            left[i, longest - len(prompt) :] = prompt
            real[i, longest - len(prompt) :] = True
        rows = [torch.cat([p, new]) for p, new in zip(prompts, self._continued(model, left, real), strict=True)]
        tokens_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        position_T = torch.arange(tokens_BT.shape[1], device=device)
        prompt_B = batch.prompt_B.repeat_interleave(self.n)
        attention_BT = position_T[None] < torch.tensor([len(row) for row in rows], device=device)[:, None]
        target_BT = attention_BT & (position_T[None] >= prompt_B[:, None])
        return Batch(tokens_BT, target_BT, attention_BT, batch.group_B.repeat_interleave(self.n), prompt_B)

    def _continued(self, model: nn.Module, tokens: Tensor, real: Tensor) -> list[Tensor]:
        """New tokens of each row up to its eos, that included."""
        attention, cache, drawn = real.long(), None, []
        position = (attention.cumsum(1) - 1).clamp(min=0)
        ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        with torch.no_grad():
            for _ in range(self.max_new_tokens):
                output = model(
                    input_ids=tokens,
                    attention_mask=attention,
                    position_ids=position,
                    past_key_values=cache,
                    use_cache=True,
                )
                cache = output.past_key_values
                p = torch.softmax(output.logits[:, -1].float() / self.temperature, -1).cpu()
                tokens = torch.multinomial(p, 1, generator=self.generator).to(tokens.device)
                drawn.append(tokens)
                ended |= tokens[:, 0] == self.eos_id
                if bool(ended.all()):
                    break
                attention = torch.cat([attention, torch.ones_like(tokens)], dim=1)
                position = position[:, -1:] + 1
        new = torch.cat(drawn, dim=1)
        length = [_until(row, self.eos_id) for row in new.tolist()]
        return [row[:n] for row, n in zip(new, length, strict=True)]


def _until(row: list[int], eos_id: int) -> int:
    return row.index(eos_id) + 1 if eos_id in row else len(row)


def _check_share(weight: float) -> None:
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must lie in [0, 1], got {weight}")
