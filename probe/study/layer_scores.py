"""By what CRU chooses layers: forget quality and utility with each single block of the unlearned model."""

from collections.abc import Sequence
from statistics import harmonic_mean

from torch import nn

from probe.axes import PerLayerL
from probe.data import QA
from probe.diagnostics.fragility import layer_map
from probe.metrics.suite import SuiteResult, answer_suite
from probe.metrics.tofu import forget_quality, truth_ratio_retain
from probe.study.study import Study


def layer_scores(
    study: Study, unlearned: nn.Module, retrained: nn.Module, batch_size: int = 32, max_new_tokens: int = 200
) -> tuple[PerLayerL, PerLayerL]:
    """Forget quality and utility with each single block of the unlearned model in the original.

    Forget quality is ln p of the KS test between the truth ratios of the forget rows and those of the retrained model.
    Utility is the harmonic mean of probability, ROUGE-L recall and truth ratio of the retain rows: TOFU's model
    utility without its two other sets (Maini et al., arXiv 2401.06121).

    Args:
        study: its original is changed in place during the sweep and bit-identical afterwards; layers are chosen on its
            rows, which need wrong answers.
        unlearned: never changed.
        retrained: trained without the forget rows.
        batch_size: rows a pass.
        max_new_tokens: longest generation.

    Raises:
        ValueError: rows without perturbed answers, or models of different architecture.
    """
    model, tokenizer, split = study.original, study.tokenizer, study.split
    for name, rows in (("forget", split.forget_rows), ("retain", split.retain_rows)):
        lacking = [i for i, row in enumerate(rows) if not row.perturbed_answer]
        if lacking:
            raise ValueError(
                f"{len(lacking)} {name} rows have no perturbed_answer (first: row {lacking[0]}); forget quality and "
                "utility are made of truth ratios, which need wrong answers"
            )

    def suite(one: nn.Module, rows: Sequence[QA], *, generating: bool) -> SuiteResult:
        return answer_suite(
            one,
            tokenizer,
            rows,
            split.template,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            max_length=split.max_length,
            with_generation=generating,
            with_paraphrases=False,
        )

    goal_N = suite(retrained, split.forget_rows, generating=False).truth_ratio_N

    def score(one: nn.Module) -> dict[str, float]:
        forget = suite(one, split.forget_rows, generating=False)
        retain = suite(one, split.retain_rows, generating=True)
        assert retain.rouge_N is not None
        parts = (retain.probability_N.mean(), retain.rouge_N.mean(), truth_ratio_retain(retain.truth_ratio_N))
        return {
            "forget_quality": forget_quality(forget.truth_ratio_N, goal_N).ln_p,
            "utility": float(harmonic_mean([float(part) for part in parts])),
        }

    found = layer_map(model, unlearned, score=score, progress=True).score_L
    assert isinstance(found, dict)
    return found["forget_quality"], found["utility"]
