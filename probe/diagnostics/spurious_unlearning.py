"""Is a model that no longer gives the answer rephrasing it, refusing, wrong, or gibbering?"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from typing import Any, Literal

from torch import nn

from probe.data import QA, Split, Template, encode
from probe.datasets import REFUSALS
from probe.diagnostics.answer_values import values
from probe.display import Result, ResultTable
from probe.metrics.generation import generate
from probe.metrics.intervals import wilson
from probe.metrics.memorisation import answer_stats
from probe.metrics.text import compression_ratio, repetition, words
from probe.rows import Row

Kind = Literal["right", "rephrased", "wrong", "refusal", "gibberish", "empty"]
KINDS: tuple[Kind, ...] = ("right", "rephrased", "wrong", "refusal", "gibberish", "empty")
# Whether the generation entails the answer: (question, answer, generation) -> bool.
Judge = Callable[[QA, str], bool]

_REFUSING = re.compile(
    r"\b(i (do not|don't|dont) know|i('m| am) (not sure|unable|not able|sorry)|i can(not|'t)|no (idea|information)|"
    r"not (aware|familiar|certain)|unable to (answer|say|provide))\b"
)

_PUNCTUATION = ".,;:!?'\"()-%$&/‘’“”–—…«»¿¡、。「」，！？：（）।،؟"


@dataclass(frozen=True)
class Rules:
    """What counts as what. Conventions of this package, not of a paper.

    Args:
        repetition: share of repeated word bigrams above which text is gibberish.
        loops: share of repeated letter trigrams above which text of 20 letters or more is gibberish.
        compression: bytes after zlib over bytes before, below which text of 60 bytes or more is gibberish.
        letters: least share of characters that are letters, digits, spaces or common punctuation.
        refusal: similarity (difflib) to a known refusal above which text is one.
    """

    repetition: float = 0.6
    loops: float = 0.6
    compression: float = 0.4
    letters: float = 0.85
    refusal: float = 0.8


@dataclass(frozen=True)
class SpuriousUnlearning(Result):
    """What the generated answers are.

    Args:
        kinds: one a row.
        shares: share of rows of each kind.
        texts: what was generated.
    """

    kinds: tuple[Kind, ...] = field(repr=False)
    shares: dict[Kind, float]
    texts: tuple[str, ...] = field(repr=False)

    @property
    def still_told(self) -> float:
        """Share of rows whose answer is given, in the same words or in others."""
        return self.shares["right"] + self.shares["rephrased"]

    def rows(self, name: str = "model", on: str = "forget") -> list[Row]:
        """The share of each kind, with its interval over rows (Wilson); ``on`` says whose rows these are."""
        n = len(self.kinds)
        rows = []
        for kind, share in self.shares.items():
            low, high = wilson(round(share * n), n)
            rows.append(Row(name, "answers", kind, share, on, low=low, high=high, n=n))
        return rows

    def table(self) -> ResultTable:
        return ResultTable(
            {"kind": self.shares, "share": self.shares.values()}, note=f"{len(self.kinds)} greedy answers"
        )


def says_value(row: QA, text: str) -> bool:
    """A rule for short facts: the right value stands in the text, and no wrong one does outside of it.

    "New York City" does not name a wrong "New York". The rule sees neither negation nor synonyms; for longer answers
    pass a judge that does (an entailment model, say).
    """
    right, *wrong = (_plain(value) for value in values(row))
    found = f" {_plain(text)} "
    if f" {right} " not in found:
        return False
    elsewhere = found.replace(f" {right} ", " | ")
    return not any(f" {other} " in elsewhere for other in wrong if other != right)


def spurious_unlearning(
    model: nn.Module,
    on: Split | Sequence[QA],
    *,
    tokenizer: Any,
    judge: Judge = says_value,
    fluent: Judge | None = None,
    rules: Rules = Rules(),
    refusals: Sequence[str] = REFUSALS,
    template: Template | None = None,
    max_new_tokens: int = 40,
    batch_size: int = 32,
) -> SpuriousUnlearning:
    """Greedy answers, each put into one class.

    Arxiv 2510.19422 names two kinds of spurious unlearning, syntactic collapse and rephrasing, and says that
    probability, ROUGE and truth ratio miss both.

    Args:
        model: measured in eval mode and left as it was; edits and blends that are in force act here too.
        on: questions with answers; of a split its forget rows.
        tokenizer: of the model.
        judge: ``(row, generation) -> bool``: whether the generation entails the answer.
        fluent: ``(row, generation) -> bool``: whether it is language at all, ``fluent_under`` say; rules see loops and
            odd characters, not words in no order.
        rules: thresholds.
        refusals: texts that count as refusals, beside common phrases.
        template: how a question becomes a prompt; the split's unless given, or the plain one.
        max_new_tokens: longest answer.
        batch_size: prompts per pass.

    Raises:
        ValueError: no rows.

    >>> few = s.split.forget_rows[:4]
    >>> probe.spurious_unlearning(s.original, few, tokenizer=s.tokenizer, max_new_tokens=12).still_told
    1.0
    """
    rows = on.forget_rows if isinstance(on, Split) else on
    if template is None:
        template = on.template if isinstance(on, Split) else Template()
    if not rows:
        raise ValueError("no rows to ask about (0 given)")
    prompts = [template.asked(row.question) for row in rows]
    texts = generate(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, template=template)
    kinds = tuple(
        classify(row, text, judge=judge, fluent=fluent, rules=rules, refusals=refusals)
        for row, text in zip(rows, texts, strict=True)
    )
    counts = Counter(kinds)
    return SpuriousUnlearning(kinds, {kind: counts[kind] / len(kinds) for kind in KINDS}, tuple(texts))


def fluent_under(reference: nn.Module, tokenizer: Any, *, floor: float, template: Template = Template()) -> Judge:
    """A judge of fluency: mean log-probability per token of the generation under ``reference`` is at least ``floor``.

    Args:
        reference: a model that speaks, the original say. It must not be the one that is judged.
        tokenizer: of the reference.
        floor: nats per token, below 0; choose it on answers known to be language.
        template: how question and answer become one text.

    Raises:
        ValueError: a floor that is not negative.
    """
    if not floor < 0:
        raise ValueError(f"floor is a log-probability per token and must be below 0, got {floor}")

    def fluent(row: QA, text: str) -> bool:
        if not text.strip():
            return False
        # What a model writes may hold the letters of a control token.
        batch = encode(tokenizer, [QA(row.question, text.strip())], template=replace(template, control_tokens="text"))
        return bool(-answer_stats(reference, batch).loss_N[0] >= floor)

    return fluent


def classify(
    row: QA,
    text: str,
    *,
    judge: Judge = says_value,
    fluent: Judge | None = None,
    rules: Rules = Rules(),
    refusals: Sequence[str] = REFUSALS,
) -> Kind:
    """The first of these that holds: empty, right (the answer's own words), refusal, gibberish, rephrased, wrong.

    An answer of three words or more is right inside a longer text, too ("Sure. ..."), refusal or not; a shorter one is
    left to the judge. A looping text is gibberish even if the answer stands in it.
    """
    plain, answer = _plain(text), _plain(row.answer)
    if not text.strip():
        return "empty"
    gibberish = not plain or _gibberish(text, rules)
    inside = answer.count(" ") >= 2 and f" {answer} " in f" {plain} " and not gibberish
    if plain and (plain == answer or inside):
        return "right"
    if _refuses(plain, rules, refusals):
        return "refusal"
    if gibberish or (fluent is not None and not fluent(row, text)):
        return "gibberish"
    return "rephrased" if judge(row, text) else "wrong"


def _plain(text: str) -> str:
    return " ".join(words(text))


def _refuses(plain: str, rules: Rules, refusals: Sequence[str]) -> bool:
    if _REFUSING.search(plain):
        return True
    return any(
        (known := _plain(one)) == plain or SequenceMatcher(None, known, plain, autojunk=False).ratio() >= rules.refusal
        for one in refusals
    )


def _gibberish(text: str, rules: Rules) -> bool:
    loops = len(text) >= 20 and repetition(list(text), 3) > rules.loops
    usual = sum(unicodedata.category(c)[0] in "LMN" or c.isspace() or c in _PUNCTUATION for c in text) / len(text)
    packed = _size(text) >= 60 and compression_ratio(_one_byte(text)) < rules.compression
    return repetition(words(text), 2) > rules.repetition or loops or packed or usual < rules.letters


def _one_byte(text: str) -> str:
    """Each distinct letter as one ASCII character, where these suffice.

    Letters of several bytes, all alike in their first, are packed small without repeating themselves.
    """
    letters = list(dict.fromkeys(text))
    if text.isascii() or len(letters) > 128:
        return text
    return text.translate({ord(letter): i for i, letter in enumerate(letters)})


def _size(text: str) -> int:
    return len(text.encode("utf-8", errors="surrogatepass"))
