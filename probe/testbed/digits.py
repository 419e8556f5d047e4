"""Handwritten digits whose labels, forget list and target concept may differ: TARF's four scenarios in miniature.

An image is a row of 64 pixel tokens whose answer is one token, its class, so that every objective, method and the one
training loop take an image classifier as they take a language model. Images: scikit-learn's copy of the UCI digits
(8 x 8, 1,797 of them), which ships with that library.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probe.axes import HiddenND, LogitsBTV, TokensBT
from probe.data import Batch, Split
from probe.objectives.token import nll
from probe.train import Term, minimise

N_PIXELS, N_DIGITS = 64, 10
# By the stroke: open curves, closed loops, straight lines. Parity has nothing to do with how a digit looks.
SHAPES = ((2, 3, 5), (0, 6, 8, 9), (1, 4, 7))
PARITY = ((0, 2, 4, 6, 8), (1, 3, 5, 7, 9))
LISTED = 3

ClassN = Int[Tensor, " N"]


@dataclass(frozen=True)
class Images:
    """Images with their digits, which stay the same whatever label a model is shown.

    Args:
        pixels_NP: 64 grey values a row, 0 to 16.
        digit_N: 0 to 9.
    """

    pixels_NP: Int[Tensor, "N P"] = field(repr=False)
    digit_N: ClassN = field(repr=False)

    def __len__(self) -> int:
        return len(self.digit_N)

    def of(self, digits: Sequence[int]) -> "Images":
        """The images of some digits, in order."""
        return self.at(torch.isin(self.digit_N, torch.tensor(sorted(digits), dtype=torch.long)).nonzero()[:, 0])

    def at(self, rows: Int[Tensor, " n"]) -> "Images":
        """The images at some places."""
        return Images(self.pixels_NP[rows], self.digit_N[rows])


@dataclass(frozen=True)
class Answer:
    """What a classifier returns: the same logits at every position, of which the last but one predicts the class."""

    logits: LogitsBTV


class Classifier(nn.Module):
    """Two hidden layers with ReLU. It reads 64 pixel tokens and ignores what follows, the answer above all.

    Args:
        width: of both hidden layers.
        n_labels: classes it tells apart.
    """

    def __init__(self, width: int, n_labels: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(N_PIXELS, width), nn.Linear(width, width)
        self.head = nn.Linear(width, n_labels)

    def features(self, input_ids: TokensBT) -> HiddenND:
        """Activations before the head."""
        hidden = self.first(input_ids[:, :N_PIXELS].to(self.first.weight.dtype) / 8 - 1).relu()
        return self.second(hidden).relu()

    def forward(
        self,
        input_ids: TokensBT,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool = False,
    ) -> Answer:
        return Answer(self.head(self.features(input_ids))[:, None].expand(-1, input_ids.shape[1], -1))


@dataclass(frozen=True)
class Scenario:
    """Three label domains: of the model, of the forget list, of the target concept (Zhu et al., arXiv 2406.08288).

    Args:
        name: what figures call it.
        groups: the digits behind each of the model's labels.
        listed: digits whose images are handed over for forgetting.
        concept: digits that are to be forgotten; all of ``listed`` and perhaps more.
    """

    name: str
    groups: tuple[tuple[int, ...], ...]
    listed: tuple[int, ...]
    concept: tuple[int, ...]

    def __post_init__(self) -> None:
        if sorted(d for group in self.groups for d in group) != list(range(N_DIGITS)):
            raise ValueError(f"groups must hold each of the digits 0..9 once, got {self.groups}")
        if not self.listed or not set(self.listed) <= set(self.concept) < set(range(N_DIGITS)):
            raise ValueError(f"expected listed within concept, short of all digits; got {self.listed}, {self.concept}")

    @property
    def remaining(self) -> tuple[int, ...]:
        """Digits that are not listed: what an unlearning method is told it may keep."""
        return tuple(d for d in range(N_DIGITS) if d not in self.listed)

    @property
    def retained(self) -> tuple[int, ...]:
        """Digits that must really be kept: what the retrained model sees."""
        return tuple(d for d in range(N_DIGITS) if d not in self.concept)

    @property
    def false_retaining(self) -> tuple[int, ...]:
        """Digits among the remaining that belong to the concept."""
        return tuple(d for d in self.concept if d not in self.listed)

    @property
    def affected(self) -> tuple[int, ...]:
        """Unlisted digits tied to the listed ones: by the concept, or by sharing the model's label with them."""
        shared = {d for group in self.groups if set(group) & set(self.listed) for d in group}
        return tuple(sorted((shared | set(self.concept)) - set(self.listed)))

    @property
    def n_unlisted_labels(self) -> int:
        """How many of the model's labels among the remaining rows belong wholly to the concept."""
        return sum(set(group) <= set(self.concept) and not set(group) <= set(self.listed) for group in self.groups)

    def label_N(self, digit_N: ClassN) -> ClassN:
        """The model's label of each digit."""
        table = torch.zeros(N_DIGITS, dtype=torch.long)
        for label, group in enumerate(self.groups):
            table[list(group)] = label
        return table[digit_N]

    def batch(self, images: Images) -> Batch:
        """Images as the model is shown them: its label is the one target token and the group."""
        label_N = self.label_N(images.digit_N)
        tokens_BT = torch.cat([images.pixels_NP, label_N[:, None]], 1)
        target_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
        target_BT[:, -1] = True
        whole = torch.ones_like(target_BT)
        return Batch(tokens_BT, target_BT, whole, label_N, torch.full((len(images),), N_PIXELS))

    def split(self, train: Images) -> Split:
        """What a method is given: the listed images to forget, all others to keep."""
        return Split(self.batch(train.of(self.listed)), self.batch(train.of(self.remaining)))


def scenarios() -> tuple[Scenario, ...]:
    """All matched, the three mismatches with superclasses by shape, and target mismatch with a concept of parity.

    The digit 3 is listed throughout; concepts are the 3, the open curves (2, 3, 5) or the odd digits. A model trained
    on parity would have a single label left without its concept, so the other mismatches are by shape only.
    """
    digits = tuple((d,) for d in range(N_DIGITS))
    curves = next(group for group in SHAPES if LISTED in group)
    odd = next(group for group in PARITY if LISTED in group)
    return (
        Scenario("all matched", digits, (LISTED,), (LISTED,)),
        Scenario("target mismatch", digits, (LISTED,), curves),
        Scenario("model mismatch", SHAPES, (LISTED,), (LISTED,)),
        Scenario("data mismatch", SHAPES, (LISTED,), curves),
        Scenario("target mismatch (parity)", digits, (LISTED,), odd),
    )


def load_images(seed: int) -> tuple[Images, Images]:
    """(train, test): half of the images each, the same number of every digit up to one; drawn by ``seed``."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    train, test = train_test_split(range(len(found.target)), test_size=0.5, stratify=found.target, random_state=seed)
    images = Images(torch.from_numpy(found.data).long(), torch.from_numpy(found.target).long())
    return images.at(torch.tensor(train)), images.at(torch.tensor(test))


@dataclass(frozen=True, kw_only=True)
class ClassifierTraining:
    """How classifiers are trained."""

    width: int = 64
    steps: int = 400
    lr: float = 3e-3
    batch_size: int = 64


def trained_classifier(
    scenario: Scenario, images: Images, seed: int, fit: ClassifierTraining = ClassifierTraining()
) -> Classifier:
    """A classifier of the scenario's labels that saw ``images``; equal seeds give equal initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(fit.width, len(scenario.groups)).eval()
    terms = [Term(1.0, nll, scenario.batch(images), "nll")]
    minimise(model, terms, steps=fit.steps, lr=fit.lr, batch_size=fit.batch_size, seed=seed)
    return model


def retrained(
    scenario: Scenario, train: Images, seed: int, fit: ClassifierTraining = ClassifierTraining()
) -> Classifier:
    """The same without any image of the concept: what unlearning should come to."""
    return trained_classifier(scenario, train.of(scenario.retained), seed, fit)


@dataclass(frozen=True)
class Predictions:
    """Of some images.

    Args:
        right_N: whether the likeliest label is the true one.
        confidence_N: probability of the true label.
    """

    right_N: Float[Tensor, " N"]
    confidence_N: Float[Tensor, " N"]


def predictions(model: nn.Module, scenario: Scenario, images: Images) -> Predictions:
    """What a classifier says of images, judged by the scenario's labels."""
    batch = scenario.batch(images)
    with torch.no_grad():
        probability_NK = model(**batch.inputs).logits[:, 0].softmax(-1)
    label_N = batch.tokens_BT[:, -1]
    right_N = (probability_NK.argmax(-1) == label_N).float()
    return Predictions(right_N, probability_NK.gather(1, label_N[:, None])[:, 0])
