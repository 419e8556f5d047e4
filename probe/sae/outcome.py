"""One word for what an edit did, from answers and retention, never from the loss alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from probe.attacks.score import Score
from probe.metrics.intervals import Interval, grouped

Word = Literal["unchanged", "collapsed", "hidden", "suppressed", "removed"]
# Less than this share of what was kept beyond chance is a broken model; the same bar as the verdict's zoo.
COLLAPSED_BELOW = 0.5
# A probability that keeps this share of itself was hardly touched.
TOLD_ABOVE = 0.9


@dataclass(frozen=True)
class EditOutcome:
    """The word and what it rests on.

    Args:
        word: "unchanged": the answers are told as before. "collapsed": half of what should be kept is gone. "hidden":
            answers are told less, and the right one is still chosen more often than by who never knew. "suppressed":
            not even chosen, while the edit is open. "removed": the same of changed weights, and it does not come back.
        told: probability of forget answers, as a share of the unedited model's.
        kept: what is left of the retain answers, as a share of the unedited model's: of their probability, or of how
            often they are chosen beyond chance, whichever is less.
        beyond: how much more often the right forget answer is chosen than by the retrained model, or than by chance.
        against: what ``beyond`` compares with.
    """

    word: Word
    told: float
    kept: float
    beyond: Interval
    against: str

    @property
    def sentence(self) -> str:
        """The evidence in words."""
        return (
            f"{self.word}: {self.told:.2f} of the answers' probability and {self.kept:.2f} of what should be kept are "
            f"left; the right forget answer is chosen {self.beyond.mean:+.2f} [{self.beyond.low:+.2f}, "
            f"{self.beyond.high:+.2f}] more often than by {self.against}"
        )


def edit_outcome(
    before: tuple[Score, Score],
    after: tuple[Score, Score],
    groups: Sequence[str],
    *,
    retrained: Score | None = None,
    open_edit: bool = True,
    returns: bool | None = None,
) -> EditOutcome:
    """The word for one edit.

    Args:
        before, after: scores of forget and retain rows without and with the edit.
        groups: the entity of each forget row.
        retrained: forget scores of a model that never knew; chance stands in for it.
        open_edit: whether knowledge is kept from showing by a hook; the weights still hold it then.
        returns: whether relearning brings it back beyond a model that never knew; None: not tried.

    Raises:
        ValueError: forget rows have no wrong answers: then hidden and suppressed cannot be told apart.
    """
    forget, retain = after
    if forget.choice_N is None or forget.n_choices is None:
        raise ValueError(
            "the forget rows have no wrong answers, so an answer that is hidden cannot be told from one that is not "
            "known; give each row perturbed_answer"
        )
    told = float(forget.probability_N.mean() / before[0].probability_N.mean())
    kept = min(_share(of(retain), of(before[1])) for of in (_probability, _beyond_chance))
    theirs_N = 1 / forget.n_choices if retrained is None else retrained.of("choice")
    beyond = grouped(forget.choice_N - theirs_N, groups, within=(-1.0, 1.0))
    word: Word = "suppressed"
    if kept < COLLAPSED_BELOW:
        word = "collapsed"
    elif told > TOLD_ABOVE:
        word = "unchanged"
    elif beyond.above_zero or returns:
        word = "hidden"
    elif not open_edit and returns is False:
        word = "removed"
    return EditOutcome(word, told, kept, beyond, "chance" if retrained is None else "a model that never knew")


def _share(after: float, before: float) -> float:
    return after / before if before > 0 else 1.0


def _probability(score: Score) -> float:
    return float(score.probability_N.mean())


def _beyond_chance(score: Score) -> float:
    """Choice beyond chance where there are wrong answers, else the answers' probability."""
    if score.choice_N is None or score.n_choices is None:
        return _probability(score)
    return float(score.choice_N.mean()) - 1 / score.n_choices
