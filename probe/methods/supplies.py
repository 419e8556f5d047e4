"""What a recipe needs besides numbers: found from the model and its rows, or handed in by the caller."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from probe.checkpoints import check_different
from probe.data import Batch, Split, encode
from probe.datasets import REFUSALS
from probe.methods.answers import needed_answers
from probe.methods.method import Method
from probe.metrics.memorisation import answer_stats, extraction_strength

HANDED_IN: Mapping[str, str] = {
    "original": "the model before unlearning, or OriginalAnswers made from it; a copy is taken unless handed in",
    "refusals": "texts to refuse with, or a batch of refusals to the forget questions; 100 texts are shipped",
    "alternatives": "rows that answer the forget questions otherwise; their perturbed answers unless handed in",
    "environment": "rows (or a batch) of an unrelated task",
    "traces": "rows (or a batch) whose answers are reasoning about what is to be forgotten",
    "labels": "'answers' or 'vocabulary': the tokens that random labels are drawn from",
    "unlearned": "the model after unlearning by another method",
    "score": "model -> how much it retains; extraction strength of the retain rows unless handed in",
    "layer_scores": "a function of nothing: (forget quality, utility) with each block of the unlearned model alone",
    "assistant": "a model with the same tokenizer: for logit_offset one that unlearned the forget rows, for "
    "logit_difference one that knows nothing else, for whp and whp_logits the model trained further on them",
    "assistant_before": "the assistant as it was before it unlearned",
    "sae": "an SAE (or another dictionary) trained on the output of a block",
    "site": "the site that the SAE belongs to",
}
"""What a caller may hand in, by name, and what it is. Everything else follows from model and rows."""

_MADE_OF = {
    "retain_refusals": ("refusals",),
    "refusal_texts": ("refusals",),
    "labels_K": ("labels",),
    "saes": ("sae", "site"),
}
_OPTIONAL = ("original", "refusals", "alternatives", "score")


def handed_in(method: Method) -> tuple[str, ...]:
    """Which of ``HANDED_IN`` a method has a use for.

    >>> from probe.methods.catalogue import method_named
    >>> handed_in(method_named("idk_dpo"))
    ('original', 'refusals')
    """
    sources = (source for need in method.needs for source in _MADE_OF.get(need, (need,)))
    return tuple(dict.fromkeys(source for source in sources if source in HANDED_IN))


def supplied(
    method: Method,
    model: nn.Module,
    split: Split,
    tokenizer: Any,
    values: Mapping[str, Any],
    *,
    seed: int = 0,
    batch_size: int = 64,
) -> dict[str, Any]:
    """The arguments that a recipe needs (``Method.needs``), by name.

    Args:
        method: whose needs.
        model: before unlearning; the original is a frozen copy of it unless handed in.
        split: its rows.
        tokenizer: of the model.
        values: what is handed in, by the names of ``HANDED_IN`` or by the recipe's own; what the method has no use for
            is left out.
        seed: fixes which refusal each question gets.
        batch_size: rows a pass where a score is measured.

    Raises:
        ValueError: something that has to be handed in and is not, or rows that do not go together.
    """
    check_supplies(method, values)
    here = {name: value for name, value in values.items() if value is not None}
    if "unlearned" in method.needs:
        check_different(model, here["unlearned"], ("original", "unlearned"))
    texts = here.get("refusals", REFUSALS)
    texts = REFUSALS if isinstance(texts, Batch) else (texts,) if isinstance(texts, str) else tuple(texts)
    batches = {name: here[name] for name in method.needs if isinstance(here.get(name), Batch)}
    drawn = [name for name in method.needs if name not in batches]
    answers = needed_answers(drawn, tokenizer, split, texts, here.get("alternatives"), seed=seed)
    made: dict[str, Callable[[], Any]] = {
        "original": lambda: copy.deepcopy(model).requires_grad_(False),
        "tokenizer": lambda: tokenizer,
        "template": lambda: split.template,
        "forget_rows": lambda: split.forget_rows,
        "retain_rows": lambda: split.retain_rows,
        "special_ids": lambda: tuple(tokenizer.all_special_ids),
        "refusal_texts": lambda: texts,
        "labels_K": lambda: label_tokens(tokenizer, split, here["labels"]),
        "score": lambda: retention(split.retain, batch_size),
        "saes": lambda: {here["site"]: here["sae"]},
    }
    found = batches | answers
    for name in (name for name in method.needs if name not in found):
        found[name] = here[name] if name in here else made[name]()
        if name in ("environment", "traces"):
            found[name] = encode(tokenizer, found[name], template=split.template, max_length=split.max_length)
    return {name: found[name] for name in method.needs}


def check_supplies(method: Method, values: Mapping[str, Any]) -> None:
    """Refuse to go on without what a method must be handed.

    Raises:
        ValueError: it is missing; what it is stands in the message.
    """
    here = {name for name, value in values.items() if value is not None}
    absent = [
        name
        for need in method.needs
        for name in _MADE_OF.get(need, (need,))
        if need not in here and name in HANDED_IN and name not in (*here, *_OPTIONAL)
    ]
    if absent:
        wanted = "; ".join(f"{name}: {HANDED_IN[name]}" for name in dict.fromkeys(absent))
        raise ValueError(f"{method.name} needs {wanted}")


def label_tokens(tokenizer: Any, split: Split, labels: str) -> Int[Tensor, " K"]:
    """The classes of a language model: all tokens of both sides' answers, or of the vocabulary, but special ones.

    Args:
        tokenizer: of the model.
        split: whose answers.
        labels: ``"answers"`` or ``"vocabulary"``.

    Raises:
        ValueError: another word, or answers that hold special tokens only.
    """
    if labels not in ("answers", "vocabulary"):
        raise ValueError(f"labels must be 'answers' or 'vocabulary', got {labels!r}")
    ids = set(tokenizer.get_vocab().values())
    if labels == "answers":
        ids = {int(token) for side in (split.forget, split.retain) for token in side.tokens_BT[side.target_BT].unique()}
    ids -= set(tokenizer.all_special_ids)
    if not ids:
        raise ValueError("the answers hold special tokens only, so that no label can be drawn; check the rows")
    return torch.tensor(sorted(ids))


def retention(retain: Batch, batch_size: int = 64) -> Callable[[nn.Module], float]:
    """The mean extraction strength of rows, teacher-forced, floor "0": UWC's score (Wang et al., arXiv 2406.09179).

    Args:
        retain: the rows.
        batch_size: rows a pass.
    """

    def score(model: nn.Module) -> float:
        matches = answer_stats(model, retain, batch_size).matches()
        return float(np.mean([extraction_strength(match_T, floor="0") for match_T in matches]))

    return score
