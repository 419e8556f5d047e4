"""What became of the facts: every diagnostic and attack on one model, and what they say together."""

from collections.abc import Callable
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from probe.attacks.facts import Studied
from probe.checkpoints import weights_hash
from probe.runs.folder import Keep, unkept, within
from probe.verdict.judge import FITTED, Judge, Verdict, judge_model, load_judge
from probe.verdict.measure import PARTS, measure
from probe.verdict.rows import verdict_rows
from probe.weights import check_same_architecture


def verdict(
    model: nn.Module, study: Studied, *, judge: Judge | None = None, keep: Keep = unkept, progress: bool = False
) -> Verdict:
    """Whether a model forgot, hides the facts, is broken, or was left alone; and how often that is wrong.

    Original, model and, where there is one, retrained model are examined alike: answers, texts, weights, hidden states
    and attacks. A fit to models of known truth says what the numbers mean; where the model lies far from all of them
    the verdict is "cannot tell".

    Args:
        model: after unlearning; attacked in place and restored bit for bit.
        study: the original, the rows, and the retrained model if there is one. Forget rows need wrong answers.
        judge: another fit than the one that comes with the package (``load_judge``).
        keep: each part of what is measured is kept by it.
        progress: whether to show a bar.

    Raises:
        ValueError: models that cannot be compared, a retrained model that is one of the others, rows without wrong
            answers, or facts that the original never knew.
        FloatingPointError: relearning diverged.

    >>> print(probe.verdict(study.retrained, probe.testbed(limit=40)))  # doctest: +SKIP
    """
    judge = load_judge(FITTED) if judge is None else judge
    models = {"original": study.original, "model": model}
    models |= {} if study.retrained is None else {"retrained": study.retrained}
    check_models(models)
    split = study.split
    given = verdict_rows(
        study.tokenizer,
        study.original,
        split.forget_rows,
        split.retain_rows,
        protocol=judge.protocol,
        template=split.template,
        max_length=split.max_length,
    )
    found = {}
    with tqdm(total=len(models) * len(PARTS), desc="verdict", unit="part", disable=not progress) as bar:
        for role, one in models.items():
            found[role] = measure(one, given, _moving(bar, within(keep, role)))
    return judge_model(judge, found["model"], found["original"], found.get("retrained"), retain=bool(split.retain_rows))


def check_models(models: dict[str, nn.Module]) -> None:
    """Refuse models that cannot be compared.

    Raises:
        ValueError: another architecture than the original's, or a retrained model that is one of the others.
    """
    for role in [role for role in models if role != "original"]:
        try:
            check_same_architecture(models["original"], models[role])
        except ValueError as error:
            raise ValueError(f"the {role} model cannot be compared with the original: {error}") from None
    if "retrained" not in models:
        return
    hashes = {role: weights_hash(one) for role, one in models.items()}
    for other in ("original", "model"):
        if hashes["retrained"] == hashes[other]:
            raise ValueError(f"--retrained has the very weights of the {other}; pass a model that never saw the rows")


def _moving(bar: Any, keep: Keep) -> Keep:
    """The same, and the bar says what is under way."""

    def kept(key: str, make: Callable[[], Any]) -> Any:
        bar.set_postfix_str(key)
        value = keep(key, make)
        bar.update()
        return value

    return kept
