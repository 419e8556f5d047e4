"""Greedy continuation of prompts, in batches that give what one prompt at a time would give."""

import inspect
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor, nn

from probe.axes import MaskBT, TokensBT
from probe.context import check_context
from probe.metrics.forward import device_of
from probe.modes import evaluating
from probe.sites import unwrapped
from probe.templates.coding import prompt_ids, stop_ids
from probe.templates.template import Template


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int = 32,
    template: Template = Template(),
) -> list[str]:
    """Continue each prompt greedily: y_t = argmax p(. | prompt, y_<t), until an eos token or the template's end.

    Whatever the model's generation_config asks for besides eos ids (sampling, beams, penalties, forced tokens) is
    not applied, and it is not altered; neither is the tokenizer. Prompts are padded on the left behind an
    attention mask with explicit positions, so the batch size does not change the text.

    Args:
        model: any Hugging Face decoder; edits and blends that are in force act here too.
        tokenizer: not altered; its pad token is not needed.
        prompts: texts to continue, ``template.asked`` of questions say; "" is allowed where bos stands before it.
        max_new_tokens: most tokens added to each prompt.
        batch_size: prompts per pass.
        template: says whether bos stands before a prompt, and what ends an answer.

    Returns:
        the continuations alone, without special tokens, in the order of the prompts.

    Raises:
        ValueError: one string instead of several, no token to start from, two bos tokens, sizes below 1, or prompts
            that leave no room for ``max_new_tokens`` in the model's context, or logits that are NaN.

    >>> prompts = [s.split.template.prompt.format(question=row.question) for row in s.split.forget_rows[:1]]
    >>> probe.generate(s.original, s.tokenizer, prompts, max_new_tokens=12)
    [' The home town was Rivenna.']
    """
    if isinstance(prompts, str):
        raise ValueError("prompts is one string; pass a list of prompts")
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError(f"max_new_tokens and batch_size must be at least 1, got {max_new_tokens} and {batch_size}")
    if not prompts:
        return []
    unseen = tokenizer.pad_token_id if template.convention == "open-unlearning" else None
    continued = continued_ids(
        model,
        prompt_ids(tokenizer, prompts, template),
        eos_ids(model, tokenizer, template),
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        pad_id=tokenizer.pad_token_id or 0,
        unseen_id=unseen,
    )
    # Cleaning up spaces would change what the model wrote.
    return [tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) for ids in continued]


def continued_ids(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    eos: AbstractSet[int],
    *,
    max_new_tokens: int,
    batch_size: int = 32,
    pad_id: int = 0,
    unseen_id: int | None = None,
) -> list[list[int]]:
    """``generate`` on token ids: the greedy continuation of each sequence, up to its eos and without it.

    Args:
        model: any Hugging Face decoder.
        sequences: token ids, at least one each, bos included where the model wants one.
        eos: ids that end a continuation; empty for none.
        max_new_tokens: most tokens added to each.
        batch_size: sequences per pass.
        pad_id: any id of the vocabulary; it is masked.
        unseen_id: tokens of the sequences that nothing attends to; None for none.

    Raises:
        ValueError: an empty sequence, sizes below 1, sequences that leave no room in the model's context, or logits
            that are NaN.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError(f"max_new_tokens and batch_size must be at least 1, got {max_new_tokens} and {batch_size}")
    if not sequences:
        return []
    if not all(sequences):
        raise ValueError("a sequence has no token; nothing can be continued")
    check_context(model, max(map(len, sequences)) + max_new_tokens)
    device = device_of(model)
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    found: list[list[int]] = [[]] * len(sequences)
    with evaluating(model), torch.no_grad():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            tokens_BT, attention_BT = _left_padded([sequences[i] for i in rows], pad_id)
            if unseen_id is not None:
                attention_BT &= tokens_BT != unseen_id
            continued = _greedy(model, tokens_BT.to(device), attention_BT.to(device), eos, max_new_tokens)
            for i, ids in zip(rows, continued, strict=True):
                found[i] = ids
    return found


def next_logprobs(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[int]],
    *,
    batch_size: int = 32,
    pad_id: int = 0,
) -> list[list[float]]:
    """ln p of each sequence's candidates as its next token, from one pass per sequence.

    Args:
        model: any Hugging Face decoder.
        sequences: token ids, at least one each.
        candidates: for each sequence, the ids to compare.
        batch_size: sequences per pass; so many distributions are held at once.
        pad_id: any id of the vocabulary; it is masked.

    Raises:
        ValueError: an empty sequence, one longer than the model's context, or logits that are NaN.
    """
    if not all(sequences):
        raise ValueError("a sequence has no token; nothing can be continued")
    check_context(model, max(map(len, sequences)))
    device = device_of(model)
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    found: list[list[float]] = [[]] * len(sequences)
    with evaluating(model), torch.no_grad():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            tokens_BT, attention_BT = _left_padded([sequences[i] for i in rows], pad_id)
            attention_BT = attention_BT.long().to(device)
            position_BT = (attention_BT.cumsum(1) - 1).clamp(min=0)
            logits_BTV = model(
                input_ids=tokens_BT.to(device),
                attention_mask=attention_BT,
                position_ids=position_BT,
                use_cache=False,
                **_last_only(model),
            ).logits
            logits_BV = logits_BTV[:, -1]
            logits_BV = logits_BV if logits_BV.dtype == torch.float64 else logits_BV.float()
            _check_numbers(logits_BV.amax(-1), 0)
            for i, logp_V in zip(rows, torch.log_softmax(logits_BV, -1), strict=True):
                found[i] = logp_V[list(candidates[i])].tolist()
    return found


def _last_only(model: nn.Module) -> dict[str, int]:
    # The logits of a long prompt over a large vocabulary would be the largest tensor of all.
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def eos_ids(model: nn.Module, tokenizer: Any, template: Template = Template()) -> set[int]:
    """What ends a text: eos, any of the ends that a chat model's generation_config lists, the end of the template."""
    listed = getattr(getattr(unwrapped(model), "generation_config", None), "eos_token_id", None)
    ids = {listed} if isinstance(listed, int) else set(listed or ())
    return ids | stop_ids(tokenizer, template)


# What changes a greedy text. Sampling, beams and lengths are left out: published evaluations set them themselves.
_ALTERS_GREEDY = (
    "repetition_penalty",
    "encoder_repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "sequence_bias",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "exponential_decay_length_penalty",
    "min_length",
    "min_new_tokens",
)


def penalties(model: nn.Module) -> dict[str, Any]:
    """What the model's generation_config asks for that would change a greedy text, and ``generate`` does not apply.

    ``transformers``' own generate does, and with it OpenUnlearning's evaluation: at a repetition_penalty of 1.1 its
    ROUGE of one real model was 0.19 against 0.14 without.
    """
    asked = getattr(unwrapped(model), "generation_config", None)
    neutral: tuple[Any, ...] = (None, 0, 1.0, [], {})
    return {name: value for name in _ALTERS_GREEDY if (value := getattr(asked, name, None)) not in neutral}


def _check_numbers(best_B: Tensor, step: int) -> None:
    """The largest of logits is NaN as soon as one of them is; ``argmax`` alone would name some token."""
    broken = int(best_B.isnan().sum())
    if broken:
        raise ValueError(
            f"the logits of {broken} of {len(best_B)} texts are NaN at new token {step}; nothing can be read from such "
            "a model. Look for NaN among its weights and edits, or load it in float32"
        )


def _left_padded(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[TokensBT, MaskBT]:
    longest = max(map(len, sequences))
    tokens_BT = torch.full((len(sequences), longest), pad_id, dtype=torch.long)
    attention_BT = torch.zeros(len(sequences), longest, dtype=torch.bool)
    for i, ids in enumerate(sequences):
        tokens_BT[i, longest - len(ids) :] = torch.tensor(ids)
        attention_BT[i, longest - len(ids) :] = True
    return tokens_BT, attention_BT


def _greedy(
    model: nn.Module, tokens_BT: TokensBT, attention_BT: MaskBT, eos: AbstractSet[int], max_new_tokens: int
) -> list[list[int]]:
    """New ids of each row, up to its eos and without it."""
    keep = _last_only(model)
    attention_BT = attention_BT.long()
    position_BT = (attention_BT.cumsum(1) - 1).clamp(min=0)
    cache = None
    continued: list[list[int]] = [[] for _ in range(len(tokens_BT))]
    running = set(range(len(tokens_BT)))
    for _ in range(max_new_tokens):
        output = model(
            input_ids=tokens_BT,
            attention_mask=attention_BT,
            position_ids=position_BT,
            past_key_values=cache,
            use_cache=True,
            **keep,
        )
        cache = output.past_key_values
        best_B, next_B = output.logits[:, -1].max(-1)
        _check_numbers(best_B[sorted(running)], len(continued[min(running)]))
        for i, token in enumerate(next_B.tolist()):
            if i in running and token in eos:
                running.remove(i)
            elif i in running:
                continued[i].append(token)
        if not running:
            break
        # Rows that have ended go on behind the scenes; rows do not see each other.
        tokens_BT = next_B[:, None]
        attention_BT = torch.cat([attention_BT, torch.ones_like(tokens_BT)], dim=1)
        position_BT = position_BT[:, -1:] + 1
    return continued


def greedy_note(dtype: str) -> tuple[str, ...]:
    """What has to stand beside texts that a model wrote in short numbers."""
    if dtype == "float32":
        return ()
    return (
        f"texts are greedy in {dtype}: where two tokens nearly tie they change with --batch-size, and ROUGE with them; "
        "compare at one batch size, or in float32",
    )
