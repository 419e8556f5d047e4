"""Scores of membership attacks, all larger for rows that the model never saw, and what they say together."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from probe.axes import MaskBT
from probe.context import check_context
from probe.data import Batch
from probe.metrics.arrays import ArrayN, losses, same_rows
from probe.metrics.forward import device_of
from probe.metrics.privacy import auc, privleak
from probe.metrics.tokens import NumberT, TokenStats
from probe.modes import check_loaded, evaluating
from probe.quantised import quantised

# The share of tokens that MUSE and OpenUnlearning's configuration take; OpenUnlearning's class default is 0.2.
PUBLISHED_K = 0.4


def loss_score(tokens: TokenStats) -> ArrayN:
    """Mean cross-entropy of each answer, eos included (Yeom et al., arXiv 1709.01604), in nats per token."""
    return tokens.loss_N


def zlib_score(loss_N: Any, texts: Sequence[str]) -> ArrayN:
    """Mean cross-entropy divided by the bytes of the zlib-compressed answer (Carlini et al., arXiv 2012.07805).

    Args:
        loss_N: mean cross-entropy of each answer, eos included (nats per token).
        texts: the answers, as text.

    Raises:
        ValueError: bad losses, or another number of texts.
    """
    loss_N = losses(loss_N, "loss_N")
    size_N = np.array([len(zlib.compress(text.encode("utf-8", errors="surrogatepass"))) for text in texts])
    same_rows(loss_N, size_N, ("loss_N", "texts"))
    return loss_N / size_N


def reference_score(loss_N: Any, reference_loss_N: Any) -> ArrayN:
    """Loss minus the loss of a reference model on the same answers (Carlini et al., arXiv 2012.07805).

    Raises:
        ValueError: bad losses, or different numbers of them.
    """
    loss_N, reference_loss_N = losses(loss_N, "loss_N"), losses(reference_loss_N, "reference_loss_N")
    same_rows(loss_N, reference_loss_N, ("loss_N", "reference_loss_N"))
    return loss_N - reference_loss_N


def min_k(tokens: TokenStats, k: float = PUBLISHED_K) -> ArrayN:
    """Minus the mean of the lowest max(1, floor(k L)) of an answer's L log-probabilities, eos left out.

    Shi et al., arXiv 2310.16789.

    Args:
        tokens: from ``token_stats``.
        k: share of tokens that count, in (0, 1].

    Returns:
        one score per row; 0 for an answer of no token besides eos, as OpenUnlearning has it.

    Raises:
        ValueError: k outside (0, 1].
    """
    return np.array([_lowest(logp_T, k) for logp_T in tokens.without_eos().logp])


def min_k_plus_plus(tokens: TokenStats, k: float = PUBLISHED_K) -> ArrayN:
    """``min_k`` of z_i = (ln p_i - mu_i) / sigma_i, mean and deviation of ln p over the vocabulary at token i.

    Zhang et al., arXiv 2404.02936; sigma_i^2 is at least 1e-6.

    Args:
        tokens: from ``token_stats`` with ``moments=True``.
        k: share of tokens that count, in (0, 1].

    Returns:
        one score per row; 0 for an answer of no token besides eos.

    Raises:
        ValueError: statistics without moments, or k outside (0, 1].
    """
    tokens = tokens.without_eos()
    if tokens.mean is None or tokens.variance is None:
        raise ValueError("Min-K%++ needs mean and variance over the vocabulary; call token_stats with moments=True")
    rows = zip(tokens.logp, tokens.mean, tokens.variance, strict=True)
    return np.array([_lowest((p_T - m_T) / np.sqrt(np.maximum(v_T, 1e-6)), k) for p_T, m_T, v_T in rows])


def _lowest(value_T: NumberT, k: float) -> float:
    if not 0 < k <= 1:
        raise ValueError(f"k is a share of the tokens and must lie in (0, 1], got {k}")
    if len(value_T) == 0:
        return 0.0
    # Adding 0 turns -0 into 0.
    return float(-np.sort(value_T)[: max(1, int(k * len(value_T)))].mean()) + 0.0


def gradient_norm(
    model: nn.Module, batch: Batch, *, mode: Literal["eval", "train"] = "eval", p: float | int = 2, eos: bool = True
) -> ArrayN:
    """Mean over weight tensors of the p-norm of the gradient of one row's mean cross-entropy (GradNorm).

    Wang et al., arXiv 2402.17012. OpenUnlearning's code leaves each row's last target out, the end of the text, and
    dropout on: ``eos=False, mode="train"``, with a p of 1, 2 or infinity. A row at a time; every row costs a backward
    pass. ``.grad`` of the weights is neither read nor written.

    Args:
        model: only weights that require gradients count.
        batch: answers.
        mode: ``"eval"``; ``"train"`` leaves dropout on, and is random where the model has any.
        p: which norm of each weight tensor's gradient, above 0; ``math.inf`` is its largest entry.
        eos: whether each row's last target counts, as in the loss.

    Returns:
        one number per row.

    Raises:
        ValueError: an unknown mode, a p that is not above 0, no weight that requires a gradient, quantised weights,
            which have none, a row without target (or of one, where the last is left out), rows longer than the
            model's context, or NaN.
    """
    if mode not in ("eval", "train"):
        raise ValueError(f"mode must be 'eval' or 'train' (as published), got {mode!r}")
    if not p > 0:
        raise ValueError(f"p must be above 0 (1, 2 or infinity, say), got {p}")
    coded = quantised(model)
    if coded:
        raise ValueError(f"{len(coded)} weights are quantised (first: {next(iter(coded))}) and have no gradient")
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if not weights:
        raise ValueError("no weight requires a gradient; call model.requires_grad_(True) first")
    kept_BT = batch.target_BT[:, 1:]
    if not eos:
        # Counted from the row's end, the last target is the first.
        kept_BT = kept_BT & (kept_BT.flip(1).cumsum(1).flip(1) > 1)
    empty = (~kept_BT.any(1)).nonzero().flatten().tolist()
    if empty:
        but = "" if eos else " besides the last"
        raise ValueError(
            f"{len(empty)} of {len(batch)} rows have no target token{but} (first: row {empty[0]}); drop them"
        )
    check_context(model, int(batch.attention_BT.sum(1).max()))
    if mode == "eval":
        with evaluating(model):
            norm_N = _norms(model, batch, kept_BT, weights, p)
    else:
        modes = [(module, module.training) for module in model.modules()]
        check_loaded(model)
        try:
            model.train()
            norm_N = _norms(model, batch, kept_BT, weights, p)
        finally:
            for module, training in modes:
                module.training = training
    if np.isnan(norm_N).any():
        raise ValueError(f"the gradient of {int(np.isnan(norm_N).sum())} of {len(batch)} rows is NaN")
    return norm_N


def _norms(model: nn.Module, batch: Batch, kept_BT: MaskBT, weights: list[nn.Parameter], p: float | int) -> ArrayN:
    found = []
    for i in range(len(batch)):
        row = batch.select([i]).to(device_of(model))
        predicted_BT = kept_BT[i : i + 1, : row.tokens_BT.shape[1] - 1].to(row.tokens_BT.device)
        with torch.enable_grad():
            logits_BTV = model(**row.inputs, use_cache=False).logits[:, :-1]
            loss = nn.functional.cross_entropy(logits_BTV[predicted_BT], row.tokens_BT[:, 1:][predicted_BT])
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        found.append(torch.stack([g.norm(p=p) for g in gradients if g is not None]).double().mean().item())
    return np.array(found)


def attack_scores(
    tokens: TokenStats,
    texts: Sequence[str] | None = None,
    *,
    k: float = PUBLISHED_K,
    reference: TokenStats | None = None,
    gradient_norm_N: Any = None,
) -> dict[str, ArrayN]:
    """Every score that what is given allows, by name: loss, zlib, min_k, min_k_plus_plus, reference, gradient_norm.

    Args:
        tokens: of the rows, from ``token_stats``; with moments for Min-K%++.
        texts: the answers as text, for zlib.
        k: share of tokens of the Min-K attacks.
        reference: of the same rows under a reference model.
        gradient_norm_N: from ``gradient_norm``.

    Raises:
        ValueError: different numbers of rows, or bad numbers.
    """
    found = {"loss": loss_score(tokens), "min_k": min_k(tokens, k)}
    if tokens.mean is not None:
        found["min_k_plus_plus"] = min_k_plus_plus(tokens, k)
    if texts is not None:
        found["zlib"] = zlib_score(tokens.loss_N, texts)
    if reference is not None:
        found["reference"] = reference_score(tokens.loss_N, reference.loss_N)
    if gradient_norm_N is not None:
        found["gradient_norm"] = losses(gradient_norm_N, "gradient_norm_N")
        same_rows(found["loss"], found["gradient_norm"], ("tokens", "gradient_norm_N"))
    return found


@dataclass(frozen=True)
class Membership:
    """How well each attack tells forget rows from rows never seen.

    Args:
        auc: by attack; 1: forget rows are still recognised, 0.5: chance, below: over-unlearned.
        auc_reference: of the retrained model, by attack; 0.5 where none was given.
        privleak: by attack, in percent.
        n_forget, n_holdout: rows on each side.
    """

    auc: dict[str, float]
    auc_reference: dict[str, float]
    privleak: dict[str, float]
    n_forget: int
    n_holdout: int


def membership(
    forget: Mapping[str, Any], holdout: Mapping[str, Any], auc_reference: Mapping[str, float] | None = None
) -> Membership:
    """AUC and privleak of every attack, forget against holdout.

    Args:
        forget, holdout: scores by attack, from ``attack_scores`` of each side.
        auc_reference: AUC of the retrained model by attack (``membership(...).auc`` of its scores); chance if None.

    Raises:
        ValueError: different attacks on the two sides or in the reference, no attack, or bad numbers.

    >>> forget, holdout = {"loss": [1.0, 1.2, 0.9]}, {"loss": [2.0, 1.1, 2.2]}
    >>> round(probe.membership(forget, holdout).auc["loss"], 2)
    0.89
    """
    if not forget or set(forget) != set(holdout):
        raise ValueError(f"attacks on forget rows: {sorted(forget)}; on holdout rows: {sorted(holdout)}; give the same")
    if auc_reference is not None and not set(forget) <= set(auc_reference):
        lacking = sorted(set(forget) - set(auc_reference))
        raise ValueError(f"auc_reference lacks {', '.join(lacking)}; measure the retrained model by the same attacks")
    areas = {name: auc(forget[name], holdout[name]) for name in forget}
    reference = {name: 0.5 if auc_reference is None else auc_reference[name] for name in areas}
    leaks = {name: privleak(areas[name], reference[name]) for name in areas}
    sizes = {(len(forget[name]), len(holdout[name])) for name in areas}
    if len(sizes) > 1:
        raise ValueError(f"attacks have different numbers of rows (forget, holdout): {sorted(sizes)}")
    return Membership(areas, reference, leaks, *sizes.pop())
