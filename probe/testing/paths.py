"""The same numbers by two ways: captured and returned, cached and not, padded and not, hooks and nnsight."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from probe.hooks import captured, edited
from probe.interventions.plan import compile_plan
from probe.interventions.replacement import Scale
from probe.sites import Site, n_layers, place_of, unwrapped
from probe.testing.checks import Answer, TokenRows, agreed, distance

Edits = Callable[[], Mapping[Site, Any]]
"""Made inside the check, so that a model that cannot even run makes it fail."""


def check_hidden_states(rows: TokenRows) -> Answer:
    """Block outputs against what transformers itself returns."""
    sites = [Site(layer) for layer in range(n_layers(rows.model))]
    with captured(rows.model, sites) as states:
        out = rows.model(**rows.batch("right"), use_cache=False, output_hidden_states=True)
    theirs = getattr(out, "hidden_states", None)
    if not theirs:
        return "absent", f"{type(unwrapped(rows.model)).__name__} returns no hidden_states"
    if len(sites) == 1:
        return "absent", "one block alone: its hidden state is returned after the final norm only"
    # Most families return what enters each block first; the last entry is after the final norm.
    for offset, convention in ((1, "the embeddings come first"), (0, "the first block's output comes first")):
        if all(torch.equal(states[s], theirs[s.layer + offset]) for s in sites[:-1]):
            return "passed", f"bit for bit at {len(sites) - 1} blocks; {convention}, the last is after the final norm"
    worst = max(sites[:-1], key=lambda s: distance(states[s], theirs[s.layer + 1]))
    return "failed", f"differs by {distance(states[worst], theirs[worst.layer + 1]):.1e} of the largest at {worst}"


def check_parts(rows: TokenRows, site: Site) -> Answer:
    """Whether a block whose attention and mlp are silenced hands on what it was given."""
    inner: list[Site] = [Site(site.layer, "attention"), Site(site.layer, "mlp")]
    lacking = [one.part for one in inner if not _has(rows.model, one)]
    if lacking:
        return "absent", f"{type(unwrapped(rows.model)).__name__} has no {' or '.join(lacking)} in its blocks"
    silenced = dict.fromkeys(inner, Scale(0.0))
    entering = Site(site.layer, side="in")
    with edited(rows.model, silenced), captured(rows.model, [site, entering]) as states:
        rows.logits()
    off = distance(states[site], states[entering])
    if off == 0:
        return "passed", "with both silenced the block is the identity, bit for bit"
    return "absent", f"with both silenced the block still changes its input by {off:.1e} of the largest: it adds more"


def check_gradients(rows: TokenRows, site: Site, largest: int) -> Answer:
    """Backward through an edit against central differences, in float64."""
    n = sum(p.numel() for p in rows.model.parameters())
    if n > largest:
        return "absent", f"{n} parameters, more than largest ({largest}): not copied to float64"
    model = copy.deepcopy(unwrapped(rows.model)).double().requires_grad_(False)
    wide = TokenRows(model, rows.rows, rows.pad)
    try:
        with captured(model, [site]) as states:
            wide.logits()
    except RuntimeError as error:
        return "absent", f"{type(model).__name__} does not run in float64: {error}"
    push_D = torch.zeros(states[site].shape[-1], dtype=torch.float64, device=states[site].device)

    def loss(push_D: Tensor) -> Tensor:
        with edited(model, {site: lambda h: h + push_D.to(h.dtype)}):
            return torch.cat(wide.real(wide.logits(), "right", wide.rows)).log_softmax(-1).square().mean()

    push_D.requires_grad_(True)
    with torch.enable_grad():
        (gradient_D,) = torch.autograd.grad(loss(push_D), push_D)
    size = gradient_D.norm()
    if not bool(torch.isfinite(size)) or size == 0:
        return "failed", f"the gradient with respect to an edit has norm {size.item():.1e}"
    scale = states[site].norm(dim=-1).median()

    def difference(step: float) -> float:
        move_D = step * scale * gradient_D.detach() / size
        return ((loss(move_D) - loss(-move_D)) / (2 * step * scale)).item()

    # Norms that calculate in float32 leave noise at small steps, curvature shows at large ones.
    off = min(abs(difference(step) - size.item()) for step in (1e-1, 1e-2, 1e-3)) / size.item()
    found = f"along the gradient within {off:.0e} of central differences, in float64"
    return ("passed", found) if off <= 1e-2 else ("failed", found.replace("within", "off by"))


def check_generation(rows: TokenRows, edits: Edits, plain: Edits) -> Answer:
    """Cached generation, generation without a cache, and one forward over the whole text, which ``plain`` edits."""
    if not hasattr(unwrapped(rows.model), "generate"):
        return "absent", f"{type(unwrapped(rows.model)).__name__} cannot generate"
    changes = edits()
    bare_BT = rows.decoded(use_cache=True)[0] if changes else None
    with edited(rows.model, changes):
        tokens_BT, cached_BTV = rows.decoded(use_cache=True)
        others_BT, uncached_BTV = rows.decoded(use_cache=False)
    new = tokens_BT.shape[1]
    whole = tuple(torch.cat([row.to(more), more]) for row, more in zip(rows.rows, tokens_BT, strict=True))
    with edited(rows.model, plain()):
        forward = rows.real(rows.logits("left", whole), "left", whole)
    # Where rounding turns a tie, the rows part; up to there they must agree.
    parted = (tokens_BT != others_BT).any(0).nonzero()
    until = int(parted[0]) + 1 if len(parted) else new
    ways = {
        "without a cache": distance(uncached_BTV[:, :until], cached_BTV[:, :until]),
        "one forward": distance(torch.stack([row[-new - 1 : -1] for row in forward]), cached_BTV),
    }
    outcome, told = agreed(ways, cached_BTV.dtype)
    same = "" if bare_BT is None else f"; {int((bare_BT != tokens_BT).sum())} of {bare_BT.numel()} tokens are others"
    return outcome, told + same


def check_padding(rows: TokenRows, edits: Edits) -> Answer:
    """TokenRows padded on either side against each row alone."""
    with edited(rows.model, edits()):
        alone = torch.cat([rows.logits(rows=(row,))[0] for row in rows.rows])
        sides: dict[str, Tensor] = {}
        for side in ("left", "right"):
            sides[side] = torch.cat(rows.real(rows.logits(side), side, rows.rows))  # type: ignore[arg-type]
    return agreed({side: distance(found, alone) for side, found in sides.items()}, alone.dtype)


def check_nnsight(rows: TokenRows, edits: Edits) -> Answer:
    """The same edits through hooks and through nnsight."""
    try:
        from probe.remote import traced
    except ImportError as error:
        return "absent", f"nnsight cannot be imported: {error}"
    changes = edits()
    plan = compile_plan(rows.model, changes)
    with edited(rows.model, changes):
        ours = rows.logits()
    given = {name: tensor for name, tensor in rows.batch("right").items() if name != "position_ids"}
    theirs = traced(rows.model, plan, given)
    pairs = [torch.cat(rows.real(found, "right", rows.rows)) for found in (theirs, ours)]
    if torch.equal(*pairs):
        return "passed", "bit for bit"
    return agreed({"nnsight": distance(*pairs)}, ours.dtype)


def check_compiled(model: nn.Module, site: Site) -> Answer:
    """Compiled models ignore hooks that come later."""
    return _refused(torch.compile(model), {site: Scale(0.5)})  # type: ignore[arg-type]


def check_meta(model: nn.Module, site: Site) -> Answer:
    """Models without weights give no numbers."""
    inner: Any = unwrapped(model)
    with torch.device("meta"):
        empty = type(inner)(copy.deepcopy(inner.config))
    return _refused(empty, {site: Scale(0.5)})


def check_checkpointing(rows: TokenRows, site: Site) -> Answer:
    """Gradient checkpointing runs the inside of a block again during backward, where the edit may be gone."""
    inner: Any = unwrapped(rows.model)
    if not getattr(inner, "supports_gradient_checkpointing", False):
        return "absent", f"{type(inner).__name__} does not checkpoint"
    parts_inside = (Site(site.layer, "mlp"), Site(site.layer, "attention"))
    inside = next((one for one in parts_inside if _has(inner, one)), None)
    if inside is None:
        return "absent", f"{type(inner).__name__} has no part inside its blocks"
    modes = [(module, module.training) for module in inner.modules()]
    before = any(getattr(module, "gradient_checkpointing", False) for module in inner.modules())
    try:
        inner.train()
        if not before:
            inner.gradient_checkpointing_enable()
        with torch.enable_grad(), edited(inner, {inside: Scale(0.5)}):
            rows.logits()
    except ValueError as error:
        return "passed", str(error)
    finally:
        if not before:
            inner.gradient_checkpointing_disable()
        for module, training in modes:
            module.training = training
    return "failed", "an edit inside a checkpointed block was not refused; its gradients would be wrong"


def _has(model: nn.Module, site: Site) -> bool:
    try:
        place_of(model, site)
    except ValueError:
        return False
    return True


def _refused(model: nn.Module, edits: Mapping[Site, Any]) -> Answer:
    try:
        with edited(model, edits):
            pass
    except ValueError as error:
        return "passed", str(error)
    return "failed", "was not refused; hooks would be passed by"
