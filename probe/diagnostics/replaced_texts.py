"""What a model writes when some of its blocks are another model's: misspelt words, another sentence, a loop?"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from torch import nn
from tqdm.auto import tqdm

from probe.data import QA, Split, Template
from probe.diagnostics.layer_maps import check_spans, single_layers
from probe.diagnostics.span_tree import Span, replaceable
from probe.display import Result, ResultTable
from probe.metrics.generation import generate
from probe.metrics.text import repetition, rouge
from probe.modes import evaluating
from probe.rows import Row
from probe.sites import n_layers
from probe.weights import blended, check_exchangeable, layers

_WORD = re.compile(r"[^\W\d_]+(?:['’\-][^\W\d_]+)*")
_MEASURES = ("misspelt", "same_as_original", "recalled", "distinct_1", "distinct_2", "repeated")


@dataclass(frozen=True)
class Text:
    """One answer of one variant.

    Args:
        first, last: the span of blocks that was replaced; None where the model is as it is.
        model: "original", "unlearned", or whose blocks were replaced: "into original", "into unlearned".
        question: what was asked.
        text: the greedy continuation.
        unknown: its words that are not in the word list, in order.
        misspelt: their share among its words; NaN without words.
        same_as_original: ROUGE-L F1 with what the original model writes.
        recalled: ROUGE-L recall of the row's answer.
        distinct_1, distinct_2: distinct tokens, and pairs of neighbouring tokens, by all (Li et al., arXiv
            1510.03055); 1 for a text that has none.
        repeated: share of tokens that are the same as the token before; 0 for fewer than two.
    """

    first: int | None
    last: int | None
    model: str
    question: str
    text: str
    unknown: tuple[str, ...]
    misspelt: float
    same_as_original: float
    recalled: float
    distinct_1: float
    distinct_2: float
    repeated: float


@dataclass(frozen=True)
class ReplacedTexts(Result):
    """Answers of every variant to every question.

    Args:
        depth: number of blocks.
        texts: variant by variant, the two models as they are first.
    """

    depth: int
    texts: tuple[Text, ...]

    def rows(self, name: str = "model") -> list[Row]:
        """One row a text, with the text in ``on``, and one a question under the intervention "question".

        ``item`` counts questions, ``layer`` is the block replaced (None: a whole model), the value the share of the
        answer that is recalled. Texts of longer spans are in ``texts`` alone.
        """
        questions = list(dict.fromkeys(text.question for text in self.texts))
        rows = [Row("question", "replaced_text", "recalled", None, q, item=i) for i, q in enumerate(questions)]
        for text in (text for text in self.texts if text.first == text.last):
            whole = text.first is None
            who = "original" if whole and text.model == "original" else name
            at = (who, "replaced_text", "recalled", text.recalled, text.text)
            rows.append(Row(*at, layer=text.first, item=questions.index(text.question)))
        return rows

    def table(self) -> ResultTable:
        spans: dict[Any, None] = dict.fromkeys(
            (t.first, t.last) if t.first is not None else t.model for t in self.texts
        )
        means = [self.means(span) for span in spans]
        return ResultTable({"blocks": map(str, spans), **{name: [one[name] for one in means] for name in _MEASURES}})

    def of(self, span: Span | str) -> tuple[Text, ...]:
        """The texts of a span, or of a model as it is ("original" or "unlearned")."""
        if isinstance(span, str):
            return tuple(text for text in self.texts if text.model == span and text.first is None)
        return tuple(text for text in self.texts if (text.first, text.last) == span)

    def means(self, span: Span | str) -> dict[str, float]:
        """Mean of each measure over the texts of ``of(span)``; NaN where none has words."""
        return _means(self.of(span), str(span))

    def by_depth(self) -> dict[str, dict[str, float]]:
        """Means over the shallow, middle and deep third of the spans that lie within a third as a whole.

        Thirds are cut at L/3 and 2L/3, rounded; single layers each lie in one.

        Raises:
            ValueError: a third without a text.
        """
        cuts = (0, round(self.depth / 3), round(2 * self.depth / 3), self.depth)
        found = {}
        for name, low, high in zip(("shallow", "middle", "deep"), cuts[:-1], cuts[1:], strict=True):
            inside = [
                t for t in self.texts if t.first is not None and t.last is not None and low <= t.first <= t.last < high
            ]
            found[name] = _means(inside, f"the {name} third (layers {low}..{high - 1})")
        return found


def words_in(texts: Iterable[str]) -> frozenset[str]:
    """The words of some texts in lower case, letters with inner apostrophes and hyphens; a word list for spelling."""
    return frozenset(word for text in texts for word in _words(text))


def replaced_texts(
    original: nn.Module,
    unlearned: nn.Module,
    on: Split | Sequence[QA],
    *,
    tokenizer: Any,
    known_words: frozenset[str] | None = None,
    max_new_tokens: int = 32,
    template: Template | None = None,
    spans: Sequence[Span] | None = None,
    into: Literal["original", "unlearned"] = "original",
    batch_size: int = 32,
    progress: bool = False,
) -> ReplacedTexts:
    """Let every variant answer the questions greedily, and measure spelling, sameness and repetition.

    Generation cannot start from kept prefixes: each variant runs whole. Layers with the same bits in both models
    change nothing, and such variants take over the text of the model as it is.

    Args:
        original, unlearned: of the same architecture; bit-identical afterwards.
        on: questions with answers; of a split its forget rows.
        tokenizer: of both models; not altered.
        known_words: lower-case words that count as spelt right; those of all rows given unless given (``words_in``).
        max_new_tokens: most tokens of an answer.
        template: how a question becomes a prompt; the split's unless given, or the plain one.
        spans: (first, last) block, both included; None is every block alone.
        into: which model the blocks are put into.
        batch_size: prompts per pass.
        progress: show a progress bar.

    Raises:
        ValueError: no rows, no known words, identical blocks, spans outside the model, another architecture, and
            what ``generate`` refuses.

    >>> few = s.split.forget_rows[:1]
    >>> short = {"spans": [(7, 7)], "max_new_tokens": 4}
    >>> found = probe.replaced_texts(s.original, s.retrained, few, tokenizer=s.tokenizer, **short)
    >>> [text.model for text in found.texts]
    ['original', 'unlearned', 'into original']
    """
    rows = on.forget_rows if isinstance(on, Split) else on
    if template is None:
        template = on.template if isinstance(on, Split) else Template()
    if known_words is None:
        known = (*on.forget_rows, *on.retain_rows) if isinstance(on, Split) else rows
        known_words = words_in(text for row in known for text in (row.question, row.answer))
    check_exchangeable(original, unlearned)
    depth = n_layers(original)
    wanted = single_layers(depth) if spans is None else tuple(dict.fromkeys(spans))
    check_spans(wanted, depth)
    if into not in ("original", "unlearned"):
        raise ValueError(f"into must be original or unlearned, got {into!r}")
    if not rows or not known_words:
        raise ValueError(
            f"{len(rows)} rows and {len(known_words)} known words were given; at least one of each is needed"
        )
    models: Mapping[str, nn.Module] = {"original": original, "unlearned": unlearned}
    host, donor = models[into], models["unlearned" if into == "original" else "original"]
    lent = replaceable(host, donor, "block")
    if all(loan is None for loan in lent):
        raise ValueError("original and unlearned model have identical blocks; check that the paths differ")
    prompts = [template.asked(row.question) for row in rows]

    def answers(model: nn.Module) -> list[str]:
        return generate(
            model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, template=template
        )

    with evaluating(original), evaluating(unlearned):
        plain = {name: answers(model) for name, model in models.items()}
        found: list[tuple[Span | None, str, list[str]]] = [(None, name, texts) for name, texts in plain.items()]
        for first, last in tqdm(wanted, desc="spans", disable=not progress, leave=False):
            changed = [layer for layer in range(first, last + 1) if lent[layer] is not None]
            if not changed:
                found.append(((first, last), f"into {into}", plain[into]))
                continue
            with blended(host, donor, layers(changed, depth)):
                found.append(((first, last), f"into {into}", answers(host)))
    texts = [
        _measured(span, name, row, text, before, known_words, tokenizer)
        for span, name, written in found
        for row, text, before in zip(rows, written, plain["original"], strict=True)
    ]
    return ReplacedTexts(depth, tuple(texts))


def _measured(
    span: Span | None, name: str, row: QA, text: str, before: str, known: frozenset[str], tokenizer: Any
) -> Text:
    words = _words(text)
    unknown = tuple(word for word in words if word not in known)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    first, last = span or (None, None)
    return Text(
        first,
        last,
        name,
        row.question,
        text,
        unknown,
        len(unknown) / len(words) if words else float("nan"),
        # Two texts without words are the same text, to which ROUGE gives 0.
        1.0 if text == before else rouge(before, text).rouge_l_f1,
        rouge(row.answer, text).rouge_l_recall,
        1 - repetition(ids, 1),
        1 - repetition(ids, 2),
        sum(a == b for a, b in pairwise(ids)) / (len(ids) - 1) if len(ids) > 1 else 0.0,
    )


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _means(texts: Sequence[Text], what: str) -> dict[str, float]:
    if not texts:
        raise ValueError(f"there are no texts of {what}; ask for spans that lie there")
    values = {name: np.array([getattr(text, name) for text in texts]) for name in _MEASURES}
    return {name: float(np.nanmean(v)) if (~np.isnan(v)).any() else float("nan") for name, v in values.items()}
