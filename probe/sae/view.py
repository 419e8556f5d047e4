"""What a feature is: the contexts in which it is strongest, the tokens it writes, how often each side has it."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from probe.data import Batch
from probe.dictionaries.adapters import check_features, dictionary
from probe.features.activity import ordinary
from probe.features.output_score import lens_tokens
from probe.figures.tokens import token_heat_map, token_texts
from probe.harvest import visit
from probe.interventions.suppression import chosen_features
from probe.sites import Site

_STYLE = "font-family:sans-serif;font-size:14px;color:#222222;max-width:60rem;margin:0 auto;padding:1rem"


@dataclass(frozen=True, eq=False)
class Context:
    """One row in which the feature is on: its tokens, the feature at each, and the side it is from."""

    on: str
    tokens: tuple[str, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class FeatureView:
    """One feature.

    Args:
        feature: its id.
        forget_rate, retain_rate: share of tokens at which it is on.
        writes: tokens whose logits its direction raises most, through the final norm's gain and the head alone.
        contexts: rows of either side where it is strongest, strongest first.
    """

    feature: int
    forget_rate: float
    retain_rate: float
    writes: tuple[str, ...]
    contexts: tuple[Context, ...] = field(repr=False)

    def html(self) -> str:
        """One ``<section>``, without scripts or links."""
        writes = ", ".join(f"<code>{html.escape(token)}</code>" for token in self.writes)
        head = (
            f"<h3>Feature {self.feature}</h3><p>On at {self.forget_rate:.2%} of forget tokens and "
            f"{self.retain_rate:.2%} of retain tokens. Writes {writes}.</p>"
        )
        if not self.contexts:
            return f"<section>{head}<p>It is on at no token that was looked at.</p></section>"
        shown = token_heat_map(
            [list(c.tokens) for c in self.contexts],
            [list(c.values) for c in self.contexts],
            label="activation",
            names=[f"{c.on}:" for c in self.contexts],
        )
        return f"<section>{head}{shown.html}</section>"


@dataclass(frozen=True, eq=False)
class FeatureViews:
    """Several features, which a notebook shows and a page holds."""

    views: tuple[FeatureView, ...]
    site: Site

    def _repr_html_(self) -> str:
        body = "".join(view.html() for view in self.views)
        return f'<div style="{_STYLE}"><h2>Features at {html.escape(str(self.site))}</h2>{body}</div>'

    def write(self, path: str | Path) -> Path:
        """A page that needs no network."""
        head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>Features</title>'
        Path(path).write_text(f"{head}{self._repr_html_()}</html>\n", encoding="utf-8")
        return Path(path)


def feature_views(
    model: nn.Module,
    sae: Any,
    site: Site,
    tokenizer: Any,
    forget: Batch,
    retain: Batch,
    features: Sequence[int],
    *,
    special_ids: Sequence[int],
    contexts: int = 5,
    writes: int = 8,
    batch_size: int = 32,
) -> FeatureViews:
    """Look at features on both sides.

    Args:
        model: the model of the dictionary; left as it was.
        sae, site: the dictionary and where it reads.
        tokenizer: of the model.
        forget, retain: rows to look for contexts in.
        features: ids.
        special_ids: tokens at which nothing counts.
        contexts: rows shown of a feature, at most.
        writes: tokens shown that it writes.
        batch_size: rows per forward pass.

    Raises:
        ValueError: unknown features, or a dictionary of another width.

    >>> views = probe.feature_views(
    ...     s.original, s.sae, s.sae_site, s.tokenizer, s.split.forget, s.split.retain, (3, 5),
    ...     special_ids=s.special_ids,
    ... )
    """
    found, ids = dictionary(sae), check_features(sae, features)
    index_K = torch.tensor(ids, dtype=torch.long, device=found.directions_FD.device)
    sides = {
        on: _seen(model, found, site, batch, index_K, special_ids, batch_size)
        for on, batch in (("forget", forget), ("retain", retain))
    }
    rates = {on: ((f_BTK > 0).sum((0, 1)) / mask_BT.sum()).tolist() for on, (f_BTK, mask_BT) in sides.items()}
    batches = {"forget": forget, "retain": retain}
    top_KN, _ = lens_tokens(model, found, ids, writes)
    views = []
    for k, feature in enumerate(ids):
        strongest = [
            (float(value), on, row)
            for on, (f_BTK, _) in sides.items()
            for row, value in enumerate(f_BTK[..., k].amax(1))
        ]
        best = sorted(strongest, key=lambda one: -one[0])[:contexts]
        shown = tuple(
            _context(tokenizer, batches[on], sides[on][0], on, row, k) for value, on, row in best if value > 0
        )
        said = tuple(token_texts(tokenizer, top_KN[k]))
        views.append(FeatureView(feature, rates["forget"][k], rates["retain"][k], said, shown))
    return FeatureViews(tuple(views), site)


def _seen(
    model: nn.Module, found: Any, site: Site, batch: Batch, index_K: Tensor, special_ids: Sequence[int], batch_size: int
) -> tuple[Tensor, Tensor]:
    """Activations of the chosen features at every ordinary token, 0 elsewhere, and which tokens are ordinary."""
    f_BTK = torch.zeros(*batch.tokens_BT.shape, len(index_K))
    mask_BT = ordinary(batch, special_ids).cpu()
    done = 0

    def take(piece: Batch, states: dict[Site, Tensor]) -> None:
        nonlocal done
        one_BTK, on_BTK = chosen_features(found, states[site], index_K)
        f_BTK[done : done + len(piece), : one_BTK.shape[1]] = (one_BTK * on_BTK).float().cpu()
        done += len(piece)

    visit(model, batch.chunks(batch_size), [site], take)
    return f_BTK * mask_BT[..., None], mask_BT


def _context(tokenizer: Any, batch: Batch, f_BTK: Tensor, on: str, row: int, k: int) -> Context:
    real_T = batch.attention_BT[row].cpu()
    ids = batch.tokens_BT[row].cpu()[real_T]
    return Context(on, tuple(token_texts(tokenizer, ids)), tuple(f_BTK[row, :, k][real_T].tolist()))
