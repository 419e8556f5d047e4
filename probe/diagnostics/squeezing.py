"""Where does the probability go that unlearning takes from the target?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.data import QA, Batch, Split, Template, encode
from probe.display import Result, ResultTable
from probe.metrics.intervals import interval
from probe.metrics.memorisation import answer_stats
from probe.modes import evaluating
from probe.rows import Row
from probe.sites import unwrapped
from probe.templates.coding import prompt_ids, stop_ids

# Bands need not have as many rows as the target: the axis is not bound.
ValuesN = Float[Tensor, "_"]

BANDS = ("high", "mid", "low")


@dataclass(frozen=True, eq=False)
class Squeezing(Result):
    """Log-probability of the target and of other responses at one checkpoint.

    Args:
        names: "target" and the bands, in the order of ``loglikelihood``.
        loglikelihood: log p(response | question), summed over tokens (nats), mean over rows.
        per_token: the same divided by the number of tokens, row by row.
        logprob: by name, per row.
    """

    names: tuple[str, ...]
    loglikelihood: tuple[float, ...]
    per_token: tuple[float, ...]
    logprob: Mapping[str, ValuesN] = field(repr=False)

    def rows(self, name: str = "model", step: int | None = None) -> list[Row]:
        """Mean log-likelihood of each set of responses with its interval over rows; ``step`` is the checkpoint's."""
        rows = []
        for quantity, logp_N in self.logprob.items():
            found = interval(logp_N.double().numpy(), within=(-math.inf, 0.0))
            at = (name, "squeezing", quantity, found.mean, "forget")
            rows.append(Row(*at, item=step, low=found.low, high=found.high, n=found.n))
        return rows

    def table(self) -> ResultTable:
        columns = {"log p": self.loglikelihood, "a token": self.per_token}
        return ResultTable({"responses": self.names, **columns}, note="mean log-probability (nats)")

    def gain(self, before: "Squeezing") -> dict[str, float]:
        """Change of the mean log-likelihood since ``before``, by name.

        Squeezing (arXiv 2510.19422) shows as a target that falls while likely responses of its meaning rise.

        Raises:
            ValueError: other responses.
        """
        if self.names != before.names:
            raise ValueError(f"responses {self.names} and {before.names} cannot be compared; measure the same batches")
        pairs = zip(self.names, self.loglikelihood, before.loglikelihood, strict=True)
        return {name: now - then for name, now, then in pairs}


def squeezing(model: nn.Module, responses: Split | Batch | Mapping[str, Batch], *, batch_size: int = 64) -> Squeezing:
    """log p of each set of responses at this moment; call it at checkpoints (``minimise(every=, observe=)``).

    Args:
        model: measured in eval mode and left as it was; edits and blends that are in force act here too.
        responses: batches by name: "target", and bands made by ``sampled_bands`` or rows of one's own. A batch is the
            target alone; of a split that is its forget rows.
        batch_size: rows per pass.

    Raises:
        ValueError: no responses, rows without a target token, or a model that gives NaN.

    >>> known, never = (probe.squeezing(model, s.split) for model in (s.original, s.retrained))
    >>> never.gain(known)["target"] < 0
    True
    """
    if isinstance(responses, Split | Batch):
        responses = {"target": responses.forget if isinstance(responses, Split) else responses}
    if not responses:
        raise ValueError("no responses are given; pass at least the target's batch")
    found, per_token = {}, []
    for name, batch in responses.items():
        stats = answer_stats(model, batch, batch_size)
        found[name] = torch.from_numpy(-stats.loss_N * stats.n_tokens_N)
        per_token.append(float(-stats.loss_N.mean()))
    return Squeezing(
        tuple(found), tuple(float(logp_N.mean()) for logp_N in found.values()), tuple(per_token), logprob=found
    )


def sampled_bands(
    original: nn.Module,
    tokenizer: Any,
    rows: Sequence[QA],
    *,
    samples: int,
    temperatures: Sequence[float],
    seed: int,
    max_new_tokens: int = 40,
    template: Template = Template(),
    max_length: int = 256,
) -> dict[str, Batch]:
    """Responses of the original other than the target, cut into thirds by its own log-likelihood, beside the target.

    A model that is certain gives nothing else at temperature 1: draw at several, hotter ones too. What counts as
    likely is always told at temperature 1. Rows with fewer than three different responses are left out of the bands.

    Args:
        original: what is sampled from; it is left as it was, and so is the global random state.
        tokenizer: of the model.
        rows: the questions.
        samples: draws per row and temperature.
        temperatures: what logits are divided by.
        seed: of the draws.
        max_new_tokens: longest response.
        template, max_length: how rows become tokens.

    Returns:
        "target", "high", "mid" and "low" batches.

    Raises:
        ValueError: no temperatures or samples, or no row with three different responses.

    >>> bands = probe.sampled_bands(
    ...     s.retrained, s.tokenizer, s.split.forget_rows[:2], samples=20, temperatures=(2.0, 5.0), seed=0,
    ...     max_new_tokens=12,
    ... )
    >>> sorted(bands)
    ['high', 'low', 'mid', 'target']
    """
    if samples < 1 or not temperatures or min(temperatures) <= 0:
        raise ValueError(f"give at least one sample and positive temperatures, got {samples} and {list(temperatures)}")
    bands: dict[str, list[QA]] = {name: [] for name in BANDS}
    for i, row in enumerate(rows):
        texts = _sampled(original, tokenizer, template, row, samples, temperatures, seed + i, max_new_tokens)
        others = [t for t in dict.fromkeys(texts) if t and t != row.answer]
        if len(others) < len(BANDS):
            continue
        ranked = [QA(row.question, text, group=row.group) for text in others]
        # What a model writes may hold the letters of a control token.
        as_text = replace(template, control_tokens="text")
        batch = encode(tokenizer, ranked, template=as_text, max_length=max_length)
        stats = answer_stats(original, batch)
        order = (stats.loss_N * stats.n_tokens_N).argsort(kind="stable")
        cuts = [round(k * len(order) / len(BANDS)) for k in range(len(BANDS) + 1)]
        for name, (a, b) in zip(BANDS, pairwise(cuts), strict=True):
            bands[name] += [ranked[k] for k in order[a:b]]
    if not bands["high"]:
        raise ValueError(
            f"none of the {len(rows)} rows has three different responses in {samples} samples at {list(temperatures)}; "
            "draw more, or at higher temperatures, or pass rows of your own"
        )
    named = {"target": list(rows), **bands}
    as_text = replace(template, control_tokens="text")
    return {name: encode(tokenizer, kept, template=as_text, max_length=max_length) for name, kept in named.items()}


def _sampled(
    model: nn.Module,
    tokenizer: Any,
    template: Template,
    row: QA,
    samples: int,
    temperatures: Sequence[float],
    seed: int,
    max_new_tokens: int,
) -> list[str]:
    device = next(model.parameters()).device
    ids = prompt_ids(tokenizer, [template.asked(row.question)], template)[0]
    stops = torch.tensor(sorted(stop_ids(tokenizer, template)), device=device)
    prompt_BT = torch.tensor([ids] * samples, device=device)
    generator = torch.Generator(device=device).manual_seed(seed)
    texts = []
    with evaluating(model), torch.no_grad():
        for temperature in temperatures:
            tokens_BT, ended_B = prompt_BT, torch.zeros(samples, dtype=torch.bool, device=device)
            inputs_BT, cache = prompt_BT, None
            for _ in range(max_new_tokens):
                output = unwrapped(model)(input_ids=inputs_BT, past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                chance_BV = (output.logits[:, -1].float() / temperature).softmax(-1)
                inputs_BT = torch.multinomial(chance_BV, 1, generator=generator)
                inputs_BT = inputs_BT.masked_fill(ended_B[:, None], int(stops[0]))
                tokens_BT = torch.cat([tokens_BT, inputs_BT], 1)
                ended_B |= torch.isin(inputs_BT[:, 0], stops)
                if bool(ended_B.all()):
                    break
            new = tokens_BT[ended_B][:, len(ids) :]
            texts += [tokenizer.decode(one, skip_special_tokens=True).strip() for one in new]
    return texts
