"""Does the model still predict, or are its logits flat, stuck on one token, its text a loop or nothing at all?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probe.context import check_rows
from probe.data import Batch, Template
from probe.diagnostics.sides import of_model
from probe.display import Result, ResultTable
from probe.metrics.generation import generate
from probe.metrics.text import repetition
from probe.modes import evaluating
from probe.rows import Row

ValuesN = Float[Tensor, " N"]
IdsN = Int[Tensor, " N"]


THRESHOLDS = ("broken", "flat", "one token", "loops", "silence")
# Positions that become rows: a distribution is drawn from them.
_ROWS = 400


@dataclass(frozen=True)
class Thresholds:
    """Above which a model counts as collapsed. Conventions of this package, not of a paper.

    Args:
        entropy_share: mean entropy as a share of ln V. 0.8 of ln 32000 is a perplexity of 4000 on text that the
            model was asked to continue; the bound is a judgement.
        top1_share: share of positions at which one and the same token comes first.
        top1_precision: below it, that token counts as stuck. A model of short answers may rightly predict the end
            of text half of the time, and then is right to.
        repetition: share of repeated bigrams in generated text; also a judgement:
            a loop of up to a dozen tokens lies above.
        empty: share of prompts to which nothing is generated. An empty text repeats nothing, so ``repetition`` alone
            would call a model that only ever ends the text intact.
        min_positions: the share of one token says nothing about fewer positions.
    """

    entropy_share: float = 0.8
    top1_share: float = 0.5
    top1_precision: float = 0.5
    repetition: float = 0.6
    empty: float = 0.5
    min_positions: int = 20


@dataclass(frozen=True, eq=False)
class LogitCollapse(Result):
    """The shape of the next-token distribution where a target is predicted.

    Args:
        verdict: "collapsed" if a threshold is crossed that the model before did not cross; without the model before,
            any: an untouched model asked through a template that is not its own crosses some, too.
        reasons: a sentence per threshold that speaks for the verdict.
        crossed: names of all thresholds crossed, of ``THRESHOLDS``.
        entropy_share: mean entropy over ln V, in [0, 1].
        top1_share: share of positions whose first token is ``top1_token``, the most common one.
        top1_precision: share of those positions at which it is the target.
        mean_max_logit, mean_top_probability: means over positions.
        spread: mean of max logit minus mean logit.
        repetition: mean over texts of 1 - distinct bigrams / bigrams of tokens; None where nothing was generated.
        entropy_N: nats, per position.
        max_logit_N, top_probability_N: per position.
        texts: what was generated.
    """

    verdict: Literal["intact", "collapsed"]
    reasons: tuple[str, ...]
    entropy_share: float
    top1_share: float
    top1_token: int
    top1_precision: float
    mean_max_logit: float
    mean_top_probability: float
    spread: float
    repetition: float | None
    entropy_N: ValuesN = field(repr=False)
    max_logit_N: ValuesN = field(repr=False)
    top_probability_N: ValuesN = field(repr=False)
    texts: tuple[str, ...] = field(default=(), repr=False)
    crossed: tuple[str, ...] = ()

    def rows(self, name: str = "model", on: str = "") -> list[Row]:
        """Means over positions, the verdict with what it crossed, and at most 400 positions one by one.

        Args:
            name: what was done to the model.
            on: whose answers these are ("forget", "retain").
        """
        n = len(self.entropy_N)
        means = {
            "entropy_share": self.entropy_share,
            "top1_share": self.top1_share,
            "repetition": self.repetition,
            "mean_max_logit": self.mean_max_logit,
            "collapsed": float(self.verdict == "collapsed"),
        }
        means |= {f"crossed {kind}": float(kind in self.crossed) for kind in THRESHOLDS}
        rows = [Row(name, "logit_collapse", quantity, value, on, n=n) for quantity, value in means.items()]
        shown = np.linspace(0, n - 1, min(_ROWS, n)).astype(int).tolist()
        for quantity in ("entropy", "max_logit", "top_probability"):
            value_N = getattr(self, f"{quantity}_N")
            rows += [Row(name, "logit_collapse", quantity, float(value_N[i]), on, item=i) for i in shown]
        return rows

    def table(self) -> ResultTable:
        numbers = {
            "entropy / ln V": self.entropy_share,
            "share of the commonest first token": self.top1_share,
            "where it is right": self.top1_precision,
            "max logit": self.mean_max_logit,
            "top probability": self.mean_top_probability,
            "max less mean logit": self.spread,
            "repetition": self.repetition,
        }
        note = "; ".join([self.verdict, *self.reasons])
        return ResultTable({"over positions": numbers.keys(), "mean": numbers.values()}, note=note)


@of_model
def logit_collapse(
    model: nn.Module,
    batch: Batch,
    *,
    tokenizer: Any = None,
    prompts: Sequence[str] | None = None,
    template: Template = Template(),
    max_new_tokens: int = 32,
    thresholds: Thresholds = Thresholds(),
    before: LogitCollapse | None = None,
    batch_size: int = 32,
) -> LogitCollapse:
    """Entropy, dominant token, logit size and repetition, with a verdict.

    Args:
        model: measured in eval mode and left as it was.
        batch: statistics are over the positions that predict its targets; a split gives a result for each side.
        tokenizer, prompts: if given, text is generated greedily from the prompts and searched for loops.
        template: that the prompts were made with; it says what ends a text.
        max_new_tokens: length of that text.
        thresholds: what counts as collapsed.
        before: what the model gave on the same rows and prompts before it was changed; what it crossed does not count.
        batch_size: rows per forward pass.

    Raises:
        ValueError: only one of tokenizer and prompts, or no prompts.

    >>> probe.logit_collapse(s.original, s.split.forget).verdict
    'intact'
    >>> probe.logit_collapse(s.original, s.split)["retain"].verdict
    'intact'
    """
    if (tokenizer is None) != (prompts is None):
        raise ValueError("pass tokenizer and prompts together, or neither; repetition is measured on generated text")
    seen = _positions(model, batch, batch_size)
    repeated: float | None = None
    texts: tuple[str, ...] = ()
    if prompts is not None:
        repeated, texts = _generated(model, tokenizer, prompts, template, max_new_tokens, batch_size)
    counts_V = torch.bincount(seen.top_N)
    token = int(counts_V.argmax())
    is_top_N = seen.top_N == token
    top1_share = is_top_N.double().mean().item()
    precision = (seen.target_N[is_top_N] == token).double().mean().item()
    entropy_share = seen.entropy_N.mean().item() / math.log(seen.vocabulary)
    crossed = _reasons(thresholds, seen, entropy_share, top1_share, precision, token)
    crossed |= _text_reasons(thresholds, texts, repeated)
    reasons = tuple(text for name, text in crossed.items() if before is None or name not in before.crossed)
    return LogitCollapse(
        "collapsed" if reasons else "intact",
        reasons,
        entropy_share=entropy_share,
        top1_share=top1_share,
        top1_token=token,
        top1_precision=precision,
        mean_max_logit=seen.max_logit_N.mean().item(),
        mean_top_probability=seen.top_probability_N.mean().item(),
        spread=(seen.max_logit_N - seen.mean_logit_N).mean().item(),
        repetition=repeated,
        entropy_N=seen.entropy_N,
        max_logit_N=seen.max_logit_N,
        top_probability_N=seen.top_probability_N,
        texts=texts,
        crossed=tuple(crossed),
    )


@dataclass(frozen=True, eq=False)
class _Positions:
    vocabulary: int
    entropy_N: ValuesN
    max_logit_N: ValuesN
    mean_logit_N: ValuesN
    top_probability_N: ValuesN
    top_N: IdsN
    target_N: IdsN

    @property
    def broken(self) -> int:
        """Positions with NaN or infinite logits."""
        return int((~torch.isfinite(self.max_logit_N)).sum())


def _positions(model: nn.Module, batch: Batch, size: int) -> _Positions:
    pieces = []
    vocabulary = 0
    device = next(model.parameters()).device
    check_rows(model, batch)
    with evaluating(model), torch.no_grad():
        # Rows without a target would only be refused by the chunks made of them.
        batch = batch.select(batch.target_BT[:, 1:].any(1).nonzero()[:, 0]).to(device)
        for piece in batch.chunks(size):
            predicted_BT = piece.target_BT[:, 1:]
            logits_NV = model(**piece.inputs, use_cache=False).logits[:, :-1][predicted_BT]
            logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
            vocabulary = logits_NV.shape[-1]
            probability_NV = logits_NV.softmax(-1)
            max_logit_N, top_N = logits_NV.max(-1)
            columns = (
                torch.special.entr(probability_NV).sum(-1),
                max_logit_N,
                logits_NV.mean(-1),
                probability_NV.amax(-1),
                top_N,
                piece.tokens_BT[:, 1:][predicted_BT],
            )
            pieces.append([column.cpu() for column in columns])
    return _Positions(vocabulary, *(torch.cat(column) for column in zip(*pieces, strict=True)))


def _generated(
    model: nn.Module, tokenizer: Any, prompts: Sequence[str], template: Template, max_new_tokens: int, batch_size: int
) -> tuple[float, tuple[str, ...]]:
    if not prompts:
        raise ValueError("no prompts to generate from (0 given); pass some or leave tokenizer and prompts out")
    texts = generate(
        model, tokenizer, list(prompts), max_new_tokens=max_new_tokens, batch_size=batch_size, template=template
    )
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return sum(repetition(one, 2) for one in ids) / len(ids), tuple(texts)


def _reasons(
    limit: Thresholds,
    seen: _Positions,
    entropy_share: float,
    top1_share: float,
    precision: float,
    token: int,
) -> dict[str, str]:
    n = len(seen.top_N)
    found = {}
    if seen.broken:
        found["broken"] = f"{seen.broken} of {n} positions have NaN or infinite logits"
    if entropy_share > limit.entropy_share:
        found["flat"] = (
            f"the distribution is flat: mean entropy is {entropy_share:.2f} of ln V (threshold {limit.entropy_share})"
        )
    if n >= limit.min_positions and top1_share > limit.top1_share and precision < limit.top1_precision:
        found["one token"] = (
            f"one token everywhere: token {token} comes first at {top1_share:.0%} of {n} positions "
            f"(threshold {limit.top1_share:.0%}) and is right at {precision:.0%} of those"
        )
    return found


def _text_reasons(limit: Thresholds, texts: Sequence[str], repeated: float | None) -> dict[str, str]:
    found = {}
    if repeated is not None and repeated > limit.repetition:
        found["loops"] = f"generated text repeats itself: {repeated:.0%} of bigrams (threshold {limit.repetition:.0%})"
    silent = sum(not text.strip() for text in texts)
    if texts and silent > limit.empty * len(texts):
        found["silence"] = (
            f"nothing is generated: {silent} of {len(texts)} texts are empty (threshold {limit.empty:.0%}); their "
            "repetition is 0 and their compression ratio 1 by definition"
        )
    return found
