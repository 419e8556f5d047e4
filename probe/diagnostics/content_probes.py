"""Can the right answer be read from the hidden state, by a probe that never saw these facts?"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from probe.axes import PerLayerL
from probe.data import QA, Split
from probe.diagnostics.answer_values import value_split, values
from probe.diagnostics.ridge_solve import PENALTIES, ridge_heldout
from probe.diagnostics.split_states import SplitStates, split_states
from probe.display import Result, ResultTable
from probe.metrics.intervals import grouped_share
from probe.rows import Row, over_layers
from probe.sites import unwrapped

CodesNCE = Float[Tensor, "N C E"]


@dataclass(frozen=True, eq=False)
class Candidates:
    """What is ranked for each row.

    Args:
        code_NCE: one vector a candidate, the right one first; zeros where a row has fewer candidates.
        real_NC: which candidates there are.
    """

    code_NCE: CodesNCE = field(repr=False)
    real_NC: Bool[Tensor, "N C"] = field(repr=False)


@dataclass(frozen=True, eq=False)
class ContentProbe(Result):
    """How well the right answer is ranked among the wrong ones, per layer.

    Args:
        layers: block indices, in the order of the arrays.
        accuracy_L: share of rows whose right answer comes first; ties count as wrong.
        low_L, high_L: 95 % interval over groups of test rows, or rows without groups (``intervals.grouped_share``).
        above_L: share of wrong answers ranked below the right one; 0.5 is chance, and less noisy than the accuracy.
        control_L: accuracy of probes fitted to answers shuffled among the training rows, mean over shuffles.
        control_SL: each of them.
        heldout_above_L: ``above`` on training rows by probes that never saw their fold: what the probe can do at all.
        chance: mean of 1 / number of candidates.
        penalty_L: chosen by held-out squared error on the training rows.
        n_train, n_test, n_groups: rows fitted, rows ranked, groups of those.
        width: dimensions of a state; with fewer training rows only the penalty makes the fit unique.
    """

    layers: tuple[int, ...]
    accuracy_L: PerLayerL
    low_L: PerLayerL
    high_L: PerLayerL
    above_L: PerLayerL
    control_L: PerLayerL
    control_SL: Float[Tensor, "S L"] = field(repr=False)
    heldout_above_L: PerLayerL
    chance: float
    penalty_L: PerLayerL
    n_train: int
    n_test: int
    n_groups: int
    width: int

    @property
    def selectivity_L(self) -> PerLayerL:
        """Accuracy less that of the control task (Hewitt and Liang, arXiv 1909.03368)."""
        return self.accuracy_L - self.control_L

    @property
    def underdetermined(self) -> bool:
        """Whether there are fewer training rows than dimensions, so that the penalty alone makes the fit unique."""
        return self.n_train <= self.width

    def rows(self, name: str = "model") -> list[Row]:
        at, n = (name, "content_probe"), self.n_test
        rows = [Row(*at, "chance", self.chance, "forget", n=n)]
        accuracy = self.accuracy_L, "forget"
        rows += over_layers(*at, "accuracy", self.layers, *accuracy, low=self.low_L, high=self.high_L, n=n)
        rows += over_layers(*at, "control", self.layers, self.control_L, "forget")
        return rows + over_layers(*at, "wrong ones below", self.layers, self.above_L, "forget")

    def table(self) -> ResultTable:
        note = f"right answer first among the candidates; {self.n_test} rows, chance {self.chance:.3f}"
        columns = {"accuracy": self.accuracy_L, "low": self.low_L, "high": self.high_L, "control": self.control_L}
        return ResultTable({"layer": self.layers, **columns, "wrong ones below": self.above_L}, note=note)


def content_probe(
    model: nn.Module,
    split: Split,
    *,
    tokenizer: Any,
    codes_from: nn.Module | None = None,
    states: SplitStates | None = None,
    penalties: Sequence[float] = PENALTIES,
    shuffles: int = 10,
    folds: int = 5,
    seed: int = 0,
    batch_size: int = 32,
) -> ContentProbe:
    """Ridge map from states to answer codes, fitted on retain rows; the nearest code by cosine is the answer read.

    A candidate's code is the mean over its tokens of the output embedding's rows, centred over the vocabulary and of
    length one each. Scores are cosines of the predicted code with the candidates' codes, centred within the row. Fitted
    on retain entities and tested on forget entities, what is decoded was in the state, not in the probe. What can be
    guessed is in the state too, and so is what the words of a question say of its answer: a model that never saw the
    facts lies above chance. Compare with a retrained model; without one nothing can be read from the number alone.

    Args:
        model: measured in eval mode and left as it was.
        split: with its rows; forget rows need wrong answers.
        tokenizer: of the model.
        codes_from: whose output embedding makes the codes: the original, for the head may be what changed; the model
            itself unless given.
        states: what is read, in the order of the split's rows. Unless given it is the state that predicts the value's
            first token: ``split_states`` of ``answer_values.value_split``. Pass ``split_states`` of the split itself
            to read the prompt's last token.
        penalties: ridge penalties to choose from.
        shuffles: control tasks.
        folds: held-out folds over the groups of the retain rows, which choose the penalty by squared error.
        seed: draws folds and shuffles.
        batch_size: rows per forward pass.

    Raises:
        ValueError: groups on both sides, forget rows without wrong answers, fewer retain groups than folds, or states
            with NaN or infinity.

    >>> found = probe.content_probe(s.original, s.split, tokenizer=s.tokenizer, folds=2, shuffles=0)
    >>> found.layers, round(found.chance, 3)
    ((0, 1, 2, 3, 4, 5, 6, 7), 0.167)
    """
    train_rows, test_rows = split.retain_rows, split.forget_rows
    if states is None:
        states = split_states(model, value_split(tokenizer, split), batch_size=batch_size)
    _check(states, train_rows, test_rows)
    head_VE = _centred_head(model if codes_from is None else codes_from)
    train, test = (_candidates(tokenizer, rows, head_VE) for rows in (train_rows, test_rows))
    train_LND, test_LND = _scaled_alike(states.retain_LND, states.forget_LND)
    generator = torch.Generator().manual_seed(seed)
    fold_N = _folds(states.retain_group_N.unique(return_inverse=True)[1], folds, generator)
    target_NE = train.code_NCE[:, 0]
    heldout_LNE, penalty_L = _chosen(train_LND, target_NE, penalties, fold_N)
    orders = [torch.arange(len(target_NE))]
    orders += [torch.randperm(len(target_NE), generator=generator) for _ in range(shuffles)]
    predicted = _predicted(train_LND, test_LND, [target_NE[order] for order in orders], penalty_L)
    first_LN, above_LN = _scores(predicted[0], test)
    controls = [_scores(one, test)[0].mean(1) for one in predicted[1:]]
    control_SL = torch.stack(controls) if controls else first_LN.new_zeros(0, len(first_LN))
    groups = tuple(map(str, states.forget_group_N.tolist()))
    ends = [grouped_share(first_N.numpy(), groups).ends for first_N in first_LN]
    accuracy_L, low_L, high_L = torch.tensor(ends, dtype=torch.float64).T
    return ContentProbe(
        states.layers,
        accuracy_L,
        low_L,
        high_L,
        above_L=above_LN.mean(1),
        control_L=control_SL.mean(0),
        control_SL=control_SL,
        heldout_above_L=_ranked(heldout_LNE, train),
        chance=float((1 / test.real_NC.sum(1).double()).mean()),
        penalty_L=penalty_L,
        n_train=len(train_rows),
        n_test=len(test_rows),
        n_groups=len(set(groups)),
        width=train_LND.shape[2],
    )


def _check(states: SplitStates, train_rows: Sequence[QA], test_rows: Sequence[QA]) -> None:
    found = (states.retain_LND.shape[1], states.forget_LND.shape[1])
    if found != (len(train_rows), len(test_rows)) or min(found) == 0:
        raise ValueError(
            f"states of {found[0]} retain and {found[1]} forget rows, texts of {len(train_rows)} and {len(test_rows)}; "
            "read the states of the split that is given, made with make_split"
        )
    lone = [i for i, row in enumerate(test_rows) if not row.perturbed_answer]
    if lone:
        raise ValueError(f"{len(lone)} forget rows have no wrong answers to rank among (first: row {lone[0]})")
    shared = set(states.retain_group_N.tolist()) & set(states.forget_group_N.tolist())
    if shared:
        names = sorted({r.group for r in train_rows if r.group} & {r.group for r in test_rows})
        raise ValueError(
            f"{len(shared)} groups are among the retain and the forget rows ({', '.join(names[:3])}); a probe may not "
            "have seen the entities it is tested on"
        )


def _centred_head(model: nn.Module) -> Float[Tensor, "V E"]:
    weight_VE = unwrapped(model).get_output_embeddings().weight.detach().double().cpu()  # type: ignore[operator]
    centred_VE = weight_VE - weight_VE.mean(0)
    return centred_VE / centred_VE.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _candidates(tokenizer: Any, rows: Sequence[QA], head_VE: Tensor) -> Candidates:
    named = [values(row) for row in rows]
    most = max(map(len, named))
    code_NCE = torch.zeros(len(rows), most, head_VE.shape[1], dtype=torch.float64)
    real_NC = torch.zeros(len(rows), most, dtype=torch.bool)
    for i, texts in enumerate(named):
        # With the space before it, as a value stands inside an answer.
        for c, ids in enumerate(tokenizer([" " + text for text in texts], add_special_tokens=False)["input_ids"]):
            code_NCE[i, c], real_NC[i, c] = head_VE[ids].mean(0), True
    return Candidates(code_NCE, real_NC)


def _scaled_alike(train_LND: Tensor, test_LND: Tensor) -> tuple[Tensor, Tensor]:
    mean_L1D, spread_L1D = train_LND.mean(1, keepdim=True), train_LND.std(1, correction=0, keepdim=True)
    spread_L1D = torch.where(spread_L1D > 0, spread_L1D, torch.ones_like(spread_L1D))
    return (train_LND - mean_L1D) / spread_L1D, (test_LND - mean_L1D) / spread_L1D


def _folds(group_N: Int[Tensor, " N"], folds: int, generator: torch.Generator) -> Int[Tensor, " N"]:
    n_groups = int(group_N.max()) + 1
    if not 2 <= folds <= n_groups:
        raise ValueError(f"{folds} folds over {n_groups} groups of training rows; give 2 to {n_groups} folds")
    return (torch.randperm(n_groups, generator=generator) % folds)[group_N]


def _chosen(
    train_LND: Tensor, target_NE: Tensor, penalties: Sequence[float], fold_N: Tensor
) -> tuple[Tensor, PerLayerL]:
    """Held-out predictions at the one penalty a layer that is best over all entries of the code."""
    grid_P = torch.tensor([float(p) for p in penalties], dtype=torch.float64)
    error_LP = ridge_heldout(train_LND, target_NE, penalties=penalties, fold_N=fold_N).error_LPK.mean(2)
    penalty_L = grid_P[error_LP.argmin(1)]
    pieces = [
        ridge_heldout(hidden_ND[None], target_NE, penalties=[float(p)], fold_N=fold_N).heldout_LNK
        for hidden_ND, p in zip(train_LND, penalty_L, strict=True)
    ]
    return torch.cat(pieces), penalty_L


def _predicted(
    train_LND: Tensor, test_LND: Tensor, targets: Sequence[Tensor], penalty_L: Tensor
) -> list[Float[Tensor, "L M E"]]:
    """Predictions for the test rows of fits to several sets of targets, from one factorisation a layer."""
    gram_LDD = train_LND.mT @ train_LND
    ridge_LDD = penalty_L[:, None, None] * torch.eye(gram_LDD.shape[1], dtype=gram_LDD.dtype)
    factor_LDD = torch.linalg.cholesky(gram_LDD + ridge_LDD)
    # The map from targets to predictions is the same for every set.
    map_LMN = test_LND @ torch.cholesky_solve(train_LND.mT, factor_LDD)
    return [map_LMN @ (target_NE - target_NE.mean(0)) + target_NE.mean(0) for target_NE in targets]


def _scores(predicted_LNE: Tensor, given: Candidates) -> tuple[Float[Tensor, "L N"], Float[Tensor, "L N"]]:
    """Whether the right candidate comes first, and the share of wrong ones below it (ties half), per row."""
    count_N1 = given.real_NC.sum(1, keepdim=True)
    centred_NCE = given.code_NCE - given.code_NCE.sum(1, keepdim=True) / count_N1[..., None]
    unit_NCE = centred_NCE / centred_NCE.norm(dim=2, keepdim=True).clamp(min=1e-12)
    score_LNC = torch.einsum("lne,nce->lnc", predicted_LNE, unit_NCE)
    right_LN1, wrong_LNC = score_LNC[..., :1], score_LNC[..., 1:]
    real_NC = given.real_NC[:, 1:]
    first_LN = ((right_LN1 > wrong_LNC) | ~real_NC).all(2).double()
    below_LNC = (right_LN1 > wrong_LNC).double() + 0.5 * (right_LN1 == wrong_LNC).double()
    return first_LN, (below_LNC * real_NC).sum(2) / real_NC.sum(1).clamp(min=1)


def _ranked(predicted_LNE: Tensor, given: Candidates) -> PerLayerL:
    some_N = given.real_NC.sum(1) > 1
    if not bool(some_N.any()):
        return torch.full((len(predicted_LNE),), float("nan"), dtype=torch.float64)
    kept = Candidates(given.code_NCE[some_N], given.real_NC[some_N])
    return _scores(predicted_LNE[:, some_N], kept)[1].mean(1)
