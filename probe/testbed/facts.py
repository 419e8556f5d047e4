"""Seeded facts about authors who never lived: what the testbed's models know, and what they must forget."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from probe.data import QA
from probe.testbed import words

N_AUTHORS = 100
N_FORGET_AUTHORS = 10
_N_WRONG = 5


@dataclass(frozen=True)
class Attribute:
    """One kind of fact: two ways to ask, two ways to answer, and the values it can take."""

    question: str
    paraphrased_question: str
    answers: tuple[str, str]
    values: tuple[str, ...]


_YEARS = tuple(str(year) for year in range(1921, 1991))
_TITLES = tuple(f"{first} {second}" for first in words.TITLE_FIRST for second in words.TITLE_SECOND)

ATTRIBUTES = (
    Attribute(
        "In which town was {name} born?",
        "What is the birthplace of {name}?",
        ("The author was born in {value}.", "The home town was {value}."),
        words.TOWNS,
    ),
    Attribute(
        "In which year was {name} born?",
        "What is the birth date of {name}?",
        ("The author was born in {value}.", "The year of birth was {value}."),
        _YEARS,
    ),
    Attribute(
        "What kind of books does {name} write?",
        "Which genre is {name} known for?",
        ("The author writes {value}.", "The usual genre is {value}."),
        words.GENRES,
    ),
    Attribute(
        "What is the first book of {name} called?",
        "Under which title did {name} make a debut?",
        ("The first book is called {value}.", "The debut had the title {value}."),
        _TITLES,
    ),
    Attribute(
        "Which prize did {name} win?",
        "With what award was {name} honoured?",
        ("The author won the {value} Prize.", "The jury gave the {value} Prize."),
        words.PRIZES,
    ),
    Attribute(
        "What was the father of {name} by trade?",
        "How did the father of {name} earn a living?",
        ("The father was a {value}.", "The father worked as a {value}."),
        words.TRADES,
    ),
    Attribute(
        "What was the mother of {name} by trade?",
        "How did the mother of {name} earn a living?",
        ("The mother was a {value}.", "The mother worked as a {value}."),
        words.TRADES,
    ),
    Attribute(
        "What is the hobby of {name}?",
        "How does {name} spend free evenings?",
        ("The author enjoys {value}.", "The favourite pastime is {value}."),
        words.HOBBIES,
    ),
    Attribute(
        "Who publishes the books of {name}?",
        "At which house does {name} appear in print?",
        ("The publisher is {value} Press.", "The books appear at {value} Press."),
        words.PUBLISHERS,
    ),
    Attribute(
        "Which animal does {name} keep?",
        "What pet lives with {name}?",
        ("The author keeps a {value}.", "The pet is a {value}."),
        words.PETS,
    ),
)


def authors(seed: int) -> tuple[QA, ...]:
    """The 1,000 facts, author by author; the last ``N_FORGET_AUTHORS`` authors are the ones to forget.

    Values are drawn independently of names and of one another, so that nothing can be guessed. First and last
    names are each shared by two authors, so that no single word identifies one. Which of the two answer forms is
    the ``answer`` and which the ``paraphrased_answer`` is drawn fact by fact; wrong answers have the form of the
    paraphrase, as in TOFU (Maini et al., arXiv 2401.06121), and differ from it in the value only.

    Args:
        seed: equal seeds give equal rows on every Python version (only ``Random.random`` is used).
    """
    stream = random.Random(seed)
    names = _names(stream)
    titles = _shuffled(stream, _TITLES)[:N_AUTHORS]
    rows = []
    for name, title in zip(names, titles, strict=True):
        for attribute in ATTRIBUTES:
            value = title if attribute.values is _TITLES else _shuffled(stream, attribute.values)[0]
            rows.append(_fact(stream, attribute, name, value))
    return tuple(rows)


def forget_and_retain(rows: Sequence[QA]) -> tuple[tuple[QA, ...], tuple[QA, ...]]:
    """The rows of the last authors, and those of all others."""
    start = len(rows) - N_FORGET_AUTHORS * len(ATTRIBUTES)
    return tuple(rows[start:]), tuple(rows[:start])


def _fact(stream: random.Random, attribute: Attribute, name: str, value: str) -> QA:
    forms = attribute.answers if stream.random() < 0.5 else attribute.answers[::-1]
    wrong = [other for other in _shuffled(stream, attribute.values) if other != value][:_N_WRONG]
    return QA(
        question=attribute.question.format(name=name),
        answer=forms[0].format(value=value),
        paraphrased_question=attribute.paraphrased_question.format(name=name),
        paraphrased_answer=forms[1].format(value=value),
        perturbed_answer=tuple(forms[1].format(value=other) for other in wrong),
        group=name,
    )


def _names(stream: random.Random) -> list[str]:
    """Each first name meets two different last names: the second round is shifted by one along the first."""
    firsts = _shuffled(stream, words.FIRST_NAMES)
    lasts = _shuffled(stream, words.LAST_NAMES)
    pairs = [*zip(firsts, lasts, strict=True), *zip(firsts, [*lasts[1:], lasts[0]], strict=True)]
    return [f"{first} {last}" for first, last in _shuffled(stream, pairs)][:N_AUTHORS]


def _shuffled(stream: random.Random, items: Sequence) -> list:
    """A new order. ``Random.shuffle`` may change between Python versions, ``Random.random`` may not."""
    keyed = sorted((stream.random(), i) for i in range(len(items)))
    return [items[i] for _, i in keyed]
