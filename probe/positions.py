"""Which tokens an edit touches or a reading keeps: absolute, so that one forward and cached decoding mean the same.

A choice of positions is any callable ``Tokens -> mask (batch, position)``. Tokens are counted along each row's real
tokens, so padding on either side shifts nothing, and across decoding steps, so a KV cache changes nothing.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from probe.axes import GroupB, HiddenBTD, MaskBT, TokensBT
from probe.outputs import kept_in, rows_before

Intervention = Callable[[HiddenBTD], HiddenBTD]


@dataclass(frozen=True)
class Tokens:
    """The tokens of one forward pass.

    Args:
        index_BT: place of each token among its row's real tokens, from 0; of no meaning at padding.
        column_BT: place of each token in the padded sequence, from 0, cached tokens included.
        real_BT: False at padding.
        prompt_B: how many real tokens each row's prompt has. In generation the prompt is what the first forward
            saw; a plain forward is all prompt.
        id_BT: token ids; None if the model was given embeddings.
        from_B: which row of the forward before each row goes on with, for those who keep something about the tokens
            in a cache: beam search puts rows in another order. None: nothing is cached, or it cannot be told.
    """

    index_BT: TokensBT
    column_BT: TokensBT
    real_BT: MaskBT
    prompt_B: GroupB
    id_BT: TokensBT | None
    from_B: GroupB | None = None


Positions = Callable[[Tokens], MaskBT]


def everywhere(tokens: Tokens) -> MaskBT:
    """Every real token.

    >>> with torch.no_grad(), probe.captured(s.original, [probe.Site(4)], positions=probe.everywhere) as hidden:
    ...     _ = s.original(**s.split.forget.inputs)
    >>> len(hidden[probe.Site(4)]) == int(s.split.forget.attention_BT.sum())
    True
    """
    return tokens.real_BT


def not_first(tokens: Tokens) -> MaskBT:
    """Every real token but each row's first: that one sees no context, and its norm may be hundreds of times larger.

    >>> hidden = probe.harvest(s.original, [s.split.forget], [probe.Site(4)], positions=probe.not_first)
    >>> len(hidden[probe.Site(4)]) == int(s.split.forget.attention_BT.sum()) - len(s.split.forget)
    True
    """
    return tokens.real_BT & (tokens.index_BT > 0)


def prompt(tokens: Tokens) -> MaskBT:
    """The tokens that generation was started with.

    >>> steer = probe.At(probe.Steer(torch.ones(128), scale=0.1), probe.prompt)
    >>> with probe.edited(s.original, {probe.Site(4): steer}):
    ...     (text,) = probe.generate(s.original, s.tokenizer, ["Where was Wendel Upwood born?"], max_new_tokens=8)
    """
    return tokens.real_BT & (tokens.index_BT < tokens.prompt_B[:, None])


def generated(tokens: Tokens) -> MaskBT:
    """The tokens that generation added, as they are fed back. Nothing in a plain forward; see ``From``.

    >>> steer = probe.At(probe.Steer(torch.ones(128), scale=0.1), probe.generated)
    >>> with probe.edited(s.original, {probe.Site(4): steer}):
    ...     (text,) = probe.generate(s.original, s.tokenizer, ["Where was Wendel Upwood born?"], max_new_tokens=8)
    """
    return tokens.real_BT & (tokens.index_BT >= tokens.prompt_B[:, None])


def last(tokens: Tokens) -> MaskBT:
    """The prompt's last real token: the one from which the first new token is predicted.

    >>> hidden = probe.harvest(s.original, [s.split.forget], [probe.Site(4)], positions=probe.last)
    >>> tuple(hidden[probe.Site(4)].shape)
    (20, 128)
    """
    return tokens.real_BT & (tokens.index_BT == tokens.prompt_B[:, None] - 1)


@dataclass(frozen=True)
class Before:
    """Real tokens whose index is below ``length``, a number or one per row.

    Raises:
        ValueError: a negative length, or lengths for another number of rows.

    >>> hidden = probe.harvest(s.original, [s.split.forget], [probe.Site(4)], positions=probe.Before(3))
    >>> len(hidden[probe.Site(4)]) == 3 * len(s.split.forget)
    True
    """

    length: int | tuple[int, ...]

    def __post_init__(self) -> None:
        _check_length(self.length)

    def __call__(self, tokens: Tokens) -> MaskBT:
        return tokens.real_BT & (tokens.index_BT < _per_row(self.length, tokens.index_BT))


@dataclass(frozen=True)
class From:
    """Real tokens whose index is ``start`` or more, a number or one per row.

    Raises:
        ValueError: a negative start, or starts for another number of rows.

    >>> prompts = tuple(s.split.forget.prompt_B.tolist())
    >>> answers = probe.harvest(s.original, [s.split.forget], [probe.Site(4)], positions=probe.From(prompts))
    """

    start: int | tuple[int, ...]

    def __post_init__(self) -> None:
        _check_length(self.start)

    def __call__(self, tokens: Tokens) -> MaskBT:
        return tokens.real_BT & (tokens.index_BT >= _per_row(self.start, tokens.index_BT))


@dataclass(frozen=True)
class Only:
    """The real tokens of the given indices, the same in every row.

    Raises:
        ValueError: no index, or a negative or repeated one.

    >>> hidden = probe.harvest(s.original, [s.split.forget], [probe.Site(4)], positions=probe.Only((1, 2)))
    >>> len(hidden[probe.Site(4)]) == 2 * len(s.split.forget)
    True
    """

    indices: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.indices or min(self.indices) < 0 or len(set(self.indices)) != len(self.indices):
            raise ValueError(f"indices {self.indices} must be different numbers from 0, at least one")

    def __call__(self, tokens: Tokens) -> MaskBT:
        return tokens.real_BT & torch.isin(tokens.index_BT, torch.tensor(self.indices, device=tokens.index_BT.device))


@dataclass(frozen=True)
class NotIds:
    """Real tokens whose id is none of ``ids``: bos, eos and other special tokens, say.

    >>> text = probe.NotIds(tuple(s.tokenizer.all_special_ids))
    >>> probe.count_rows([s.split.forget], text) < probe.count_rows([s.split.forget])
    True
    """

    ids: tuple[int, ...]

    def __call__(self, tokens: Tokens) -> MaskBT:
        if tokens.id_BT is None:
            raise ValueError("the model was given embeddings, not token ids; choose positions by index instead")
        return tokens.real_BT & ~torch.isin(tokens.id_BT, torch.tensor(self.ids, device=tokens.id_BT.device))


@dataclass(frozen=True, eq=False)
class Mask:
    """The columns where ``mask_BT`` is True, of the padded sequence; tokens beyond it are not chosen.

    Raises:
        ValueError: another number of rows than the model sees (beams of one row share its mask).

    >>> probe.count_rows([s.split.forget], probe.Mask(s.split.forget.target_BT)) == int(s.split.forget.target_BT.sum())
    True
    """

    mask_BT: MaskBT = field(repr=False)

    def __call__(self, tokens: Tokens) -> MaskBT:
        rows = _repeated(self.mask_BT.to(tokens.real_BT.device), len(tokens.real_BT), "the mask")
        width = rows.shape[1]
        chosen_BT = rows.gather(1, tokens.column_BT.clamp(max=width - 1)) & (tokens.column_BT < width)
        return tokens.real_BT & chosen_BT


@dataclass(frozen=True, eq=False)
class At:
    """An intervention at chosen positions only; the other tokens keep their bits.

    Args:
        intervention: what to do; it is given all tokens of the forward and must not mix them.
        positions: which tokens keep the result.

    >>> edit = probe.At(probe.Scale(0.0), probe.not_first)
    >>> with probe.edited(s.original, {probe.Site(4): edit}):
    ...     harmed = probe.nll(s.original, s.split.retain)
    >>> bool(harmed > probe.nll(s.original, s.split.retain))
    True
    """

    intervention: Intervention
    positions: Positions

    def __call__(self, hidden_BTD: HiddenBTD) -> HiddenBTD:
        raise TypeError("At needs to know where tokens stand; it works inside probe.hooks.edited")


def mask_of(positions: Positions, tokens: Tokens, hidden_BTD: HiddenBTD) -> MaskBT:
    """The mask, on the device of the hidden states.

    Raises:
        ValueError: hidden states that are not laid out as the model's tokens are.
    """
    chosen_BT = positions(tokens).to(hidden_BTD.device)
    if chosen_BT.shape != hidden_BTD.shape[:2]:
        raise ValueError(
            f"positions chose among {tuple(chosen_BT.shape)} tokens, the hidden states here have "
            f"{tuple(hidden_BTD.shape[:2])}; use a site that keeps batch and position"
        )
    return chosen_BT


@dataclass
class Counter:
    """Follows the forwards of one model and says what their tokens are.

    It knows a continued generation from a new prompt by the cache, or without a cache by rows that grow by a token.
    """

    columns: int = 0
    prompt_B: Tensor | None = None
    real_B: Tensor | None = None
    previous_BT: Tensor | None = None
    cache: weakref.ref[Any] | None = None
    kept: Tensor | None = None
    tokens: Tokens | None = None

    def see(self, given: dict[str, Any]) -> None:
        """Take note of a forward's keyword arguments.

        Raises:
            ValueError: an attention mask from which padding cannot be read, or a prompt with guessed tokens.
        """
        ids_BT, mask = given.get("input_ids"), given.get("attention_mask")
        shown = ids_BT if ids_BT is not None else given.get("inputs_embeds")
        if shown is None:
            raise ValueError("the model got neither input_ids nor inputs_embeds; positions cannot be counted")
        n_rows, n_new = shown.shape[:2]
        if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
            got = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
            raise ValueError(
                f"positions are counted from a two-dimensional attention mask, got {got}; "
                "use a dynamic cache, or edit at all positions"
            )
        past = self._past(given, mask, n_new)
        kept = given.get("logits_to_keep")
        if past == 0 and _cache(given) is not None and isinstance(kept, int) and kept > 1:
            raise ValueError(
                f"the first forward of assisted generation shows {kept - 1} guessed tokens together with the prompt, "
                "which cannot be told apart; generate without an assistant or prompt lookup, or edit at all positions"
            )
        if mask is not None:
            real_all = mask[:, : past + n_new].bool()
            real_BT, before_B = real_all[:, past:], real_all[:, :past].sum(1)
        else:
            real_BT = torch.ones(n_rows, n_new, dtype=torch.bool, device=shown.device)
            # Some models drop the mask once they decode: what was padding then is known from the forwards before.
            counted_B = self.real_B if past == self.columns else None
            if counted_B is None or len(counted_B) != n_rows:
                counted_B = torch.full((n_rows,), past, device=shown.device)
            before_B = counted_B
        index_BT = before_B[:, None] + real_BT.long().cumsum(1) - 1
        if past == 0 and not self._grown(ids_BT):
            self.prompt_B = real_BT.sum(1)
        elif self.prompt_B is None or len(self.prompt_B) != n_rows or not self._follows(given, past):
            # The cache was filled before we looked: what it holds is the prompt.
            self.prompt_B = before_B
        self.cache = weakref.ref(_cache(given)) if _cache(given) is not None else None
        self.columns, self.real_B = past + n_new, before_B + real_BT.sum(1)
        self.previous_BT = ids_BT if past == 0 else None
        column_BT = torch.arange(past, past + n_new, device=shown.device).expand(n_rows, n_new)
        from_B = rows_before(kept_in(_cache(given)), self.kept, n_rows) if past else None
        self.kept = None
        self.tokens = Tokens(index_BT, column_BT, real_BT, self.prompt_B, ids_BT, from_B)

    def leave(self, output: Any) -> None:
        """Take note of what a forward left in its cache."""
        self.kept = kept_in(_cache(output)) if isinstance(output, dict) else None

    def _past(self, given: dict[str, Any], mask: Tensor | None, n_new: int) -> int:
        cache = _cache(given)
        if cache is None:
            return 0
        if mask is not None:
            return mask.shape[1] - n_new
        layers = getattr(cache, "layers", ())
        if any(hasattr(layer, "keys") for layer in layers):
            return int(cache.get_seq_length())
        # State-space caches hold no tokens to count, so we count them.
        return self.columns if layers and cache.has_previous_state() else 0

    def _follows(self, given: dict[str, Any], past: int) -> bool:
        """Whether the last forward's tokens are what the cache holds, or a start of it, where it was cropped."""
        if past == 0 or past == self.columns:
            return True
        return past < self.columns and self.cache is not None and self.cache() is _cache(given)

    def _grown(self, ids_BT: Tensor | None) -> bool:
        """Whether these rows are the last forward's with one token more: generation without a cache."""
        before = self.previous_BT
        if ids_BT is None or before is None or ids_BT.shape != (before.shape[0], before.shape[1] + 1):
            return False
        known = {tuple(row) for row in before.tolist()}
        return all(tuple(row) in known for row in ids_BT[:, :-1].tolist())


def _cache(given: dict[str, Any]) -> Any:
    cache = given.get("past_key_values")
    return given.get("cache_params") if cache is None else cache


def _check_length(length: int | tuple[int, ...]) -> None:
    odd = [n for n in (length if isinstance(length, tuple) else (length,)) if n < 0]
    if odd:
        raise ValueError(f"token index {odd[0]} is negative; count from each row's first real token, 0")


def _per_row(length: int | tuple[int, ...], index_BT: Tensor) -> Tensor:
    if isinstance(length, int):
        return torch.full((1, 1), length, device=index_BT.device)
    return _repeated(torch.tensor(length, device=index_BT.device)[:, None], len(index_BT), "the list of lengths")


def _repeated(rows: Tensor, n: int, name: str) -> Tensor:
    """One entry per row of the model's batch; beam search puts the beams of a row next to one another."""
    if n % len(rows):
        raise ValueError(f"{name} has {len(rows)} rows, the model sees {n}; give one per row")
    return rows.repeat_interleave(n // len(rows), 0)
