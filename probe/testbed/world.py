"""Plain facts about the world: the control set, which no method may forget."""

from dataclasses import dataclass

from probe.data import QA

_N_WRONG = 5


@dataclass(frozen=True)
class Family:
    """Facts of one form; wrong answers are the right answers of other subjects."""

    question: str
    paraphrased_question: str
    answer: str
    paraphrased_answer: str
    facts: tuple[tuple[str, str], ...]
    spare: tuple[str, ...] = ()


FAMILIES = (
    Family(
        "What is the capital of {subject}?",
        "Which city is the seat of government of {subject}?",
        "The capital is {value}.",
        "The capital city is called {value}.",
        (
            ("France", "Paris"),
            ("Italy", "Rome"),
            ("Spain", "Madrid"),
            ("Japan", "Tokyo"),
            ("Egypt", "Cairo"),
            ("Norway", "Oslo"),
            ("Kenya", "Nairobi"),
            ("Peru", "Lima"),
            ("Cuba", "Havana"),
            ("Greece", "Athens"),
        ),
    ),
    Family(
        "What colour is {subject}?",
        "Which colour do people see in {subject}?",
        "The colour is {value}.",
        "People see that it is {value}.",
        (
            ("fresh snow", "white"),
            ("coal", "black"),
            ("grass", "green"),
            ("a ripe lemon", "yellow"),
            ("a ripe tomato", "red"),
            ("the clear sky", "blue"),
            ("a carrot", "orange"),
            ("chocolate", "brown"),
        ),
    ),
    Family(
        "How many legs does {subject} have?",
        "On how many legs does {subject} stand?",
        "The number is {value}.",
        "The count of legs is {value}.",
        (
            ("an ant", "six"),
            ("a spider", "eight"),
            ("a horse", "four"),
            ("a hen", "two"),
            ("a crab", "ten"),
            ("an earthworm", "zero"),
        ),
        ("five", "seven", "twelve"),
    ),
    Family(
        "What is the opposite of {subject}?",
        "Which word means the reverse of {subject}?",
        "The opposite is {value}.",
        "The reverse word is {value}.",
        (
            ("hot", "cold"),
            ("big", "small"),
            ("early", "late"),
            ("old", "young"),
            ("heavy", "light"),
            ("wet", "dry"),
            ("loud", "soft"),
            ("rich", "poor"),
        ),
    ),
    Family(
        "What is a young {subject} called?",
        "Which name is used for the young of a {subject}?",
        "The young one is a {value}.",
        "The name in use is {value}.",
        (
            ("dog", "puppy"),
            ("sheep", "lamb"),
            ("cow", "calf"),
            ("bear", "cub"),
            ("hen", "chick"),
            ("swan", "cygnet"),
            ("horse", "foal"),
            ("pig", "piglet"),
        ),
    ),
)


def world() -> tuple[QA, ...]:
    """The control facts, each family in its listed order."""
    return tuple(_fact(family, i) for family in FAMILIES for i in range(len(family.facts)))


def _fact(family: Family, i: int) -> QA:
    subject, value = family.facts[i]
    # Taking the next ones around the circle needs no randomness and favours no wrong answer.
    around = [v for _, v in (*family.facts[i + 1 :], *family.facts[:i])]
    wrong = [*dict.fromkeys((*around, *family.spare))][:_N_WRONG]
    return QA(
        question=family.question.format(subject=subject),
        answer=family.answer.format(value=value),
        paraphrased_question=family.paraphrased_question.format(subject=subject),
        paraphrased_answer=family.paraphrased_answer.format(value=value),
        perturbed_answer=tuple(family.paraphrased_answer.format(value=other) for other in wrong),
        group=subject,
    )
