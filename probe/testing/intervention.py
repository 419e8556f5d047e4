"""Whether an intervention of one's own is what this package takes it for."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from probe.hooks import captured, edited
from probe.interventions.operations import Compilable
from probe.interventions.plan import compile_plan
from probe.modes import evaluating
from probe.positions import At, From
from probe.sites import Site, n_layers
from probe.testing.checks import Answer, CheckReport, TokenRows, agreed, ask, distance, hooks_of
from probe.testing.model import rows_for

Apply = Callable[..., Tensor]


def check_intervention(make: Callable[[int], Any], model: nn.Module) -> CheckReport:
    """Check that an intervention maps hidden states to hidden states as ``probe.hooks.edited`` expects.

    It must keep shape and dtype, repeat itself, leave its input alone, treat rows and tokens apart from one another,
    and let gradients through. At the middle block's output it must then mean the same in a forward, in generation
    with and without a cache, and as a plan.

    Args:
        make: width of the hidden states -> intervention; called several times.
        model: where to try it; left as it was.

    Returns:
        one check a promise; see ``Report.raise_for_failure``.

    >>> report = probe.check_intervention(lambda width: probe.Scale(0.5), s.original)
    >>> report.failed
    ()
    """
    site = Site(n_layers(model) // 2)
    rows = rows_for(model, None)
    with evaluating(model), torch.no_grad():
        with captured(model, [site]) as states:
            rows.logits()
        seen_BTD = states[site]
        torch_seed = torch.Generator().manual_seed(0)
        # Real hidden states in shape, dtype and size, but three rows of nothing but real tokens.
        spread = seen_BTD.float().std().item()
        hidden_BTD = (torch.randn(3, 5, seen_BTD.shape[-1], generator=torch_seed) * spread).to(seen_BTD)
        intervention = make(hidden_BTD.shape[-1])
        apply = partial(_applied, intervention)
        checks = [
            ask("shape, dtype and device", partial(_shape, apply, hidden_BTD)),
            ask("repeats itself", partial(_repeats, apply, hidden_BTD)),
            ask("input unchanged", partial(_input, apply, hidden_BTD)),
            ask("rows are independent", partial(_apart, apply, hidden_BTD, 0)),
            ask("tokens are independent", partial(_apart, apply, hidden_BTD, 1)),
            ask("order of rows", partial(_order, apply, hidden_BTD)),
            ask("gradients", partial(_gradients, partial(_applied, make(hidden_BTD.shape[-1])), hidden_BTD)),
            *(
                ask(str(dtype).removeprefix("torch."), partial(_half, make, hidden_BTD, dtype))
                for dtype in (torch.bfloat16, torch.float16)
            ),
            ask("plan", partial(_plan, model, intervention, site, hidden_BTD)),
            ask("At", partial(_at, rows, intervention, site)),
            ask("generation", partial(_generation, rows, intervention, site, hidden_BTD)),
            ask("hooks gone", partial(_hooks, rows, intervention, site)),
        ]
    return CheckReport(f"{type(intervention).__name__} at {site} of {type(model).__name__}", tuple(checks))


def _applied(intervention: Any, hidden_BTD: Tensor, *, entering: Tensor | None = None) -> Tensor:
    if not getattr(intervention, "reads_input", False):
        return intervention(hidden_BTD)
    return intervention(hidden_BTD, hidden_BTD.flip(-1) if entering is None else entering)


def _shape(apply: Apply, hidden_BTD: Tensor) -> Answer:
    for size in (hidden_BTD.shape[1], 1):
        given, found = hidden_BTD[:, :size], apply(hidden_BTD[:, :size].clone())
        if not isinstance(found, Tensor):
            return "failed", f"returned {type(found).__name__}; expected a tensor"
        for name in ("shape", "dtype", "device"):
            ours, theirs = getattr(given, name), getattr(found, name)
            if ours != theirs:
                return "failed", f"given {name} {ours}, returned {theirs}; cast the result with .to(hidden)"
        if not bool(torch.isfinite(found).all()):
            return "failed", "the result holds NaN or infinity"
    return "passed", f"{tuple(hidden_BTD.shape)} {hidden_BTD.dtype} on {hidden_BTD.device}"


def _repeats(apply: Apply, hidden_BTD: Tensor) -> Answer:
    first = apply(hidden_BTD.clone())
    apply(hidden_BTD[:1, :2].clone())
    if torch.equal(apply(hidden_BTD.clone()), first):
        return "passed", "the same input gives the same bits, another input in between"
    return "failed", "the same input gave two results; fix the seed, and keep no state between calls"


def _input(apply: Apply, hidden_BTD: Tensor) -> Answer:
    given, entering = hidden_BTD.clone(), hidden_BTD.flip(-1)
    apply(given, entering=entering)
    if torch.equal(given, hidden_BTD) and torch.equal(entering, hidden_BTD.flip(-1)):
        return "passed", "no bit of it"
    return "failed", "the input was changed in place, which the model may still need; work on a new tensor"


def _apart(apply: Apply, hidden_BTD: Tensor, axis: int) -> Answer:
    """Changing one row (or token) must leave the results of the others as they are."""
    before, name = apply(hidden_BTD.clone()), ("row", "token")[axis]
    for one in range(hidden_BTD.shape[axis]):
        other = hidden_BTD.clone()
        other.select(axis, one).mul_(-1.7)
        rest = [i for i in range(hidden_BTD.shape[axis]) if i != one]
        moved = distance(apply(other).transpose(0, axis)[rest], before.transpose(0, axis)[rest])
        if not moved <= 1e-6:
            return "failed", f"changing {name} {one} moves the other {name}s by {moved:.1e} of the largest number"
    return "passed", f"changing one {name} changes the result of no other"


def _order(apply: Apply, hidden_BTD: Tensor) -> Answer:
    order = [2, 0, 1]
    moved = distance(apply(hidden_BTD[order].clone()), apply(hidden_BTD.clone())[order])
    if moved <= 1e-6:
        return "passed", "permuted rows give the permuted result"
    if _apart(apply, hidden_BTD, 0)[0] == "failed":
        return "failed", f"permuted rows give another result ({moved:.1e} of the largest number): rows are mixed"
    return "absent", "depends on a row's place in the batch: other batches and beams are treated otherwise"


def _gradients(apply: Apply, hidden_BTD: Tensor) -> Answer:
    generator = torch.Generator().manual_seed(1)
    wide = hidden_BTD.double().detach()
    weight = torch.randn(wide.shape, generator=generator).to(wide)
    direction = torch.randn(wide.shape, generator=generator).to(wide)

    def value(step: float) -> float:
        return float((apply(wide + step * direction).double() * weight).sum())

    given = wide.clone().requires_grad_(True)
    with torch.enable_grad():
        found = apply(given * 1.0)
        if not found.requires_grad:
            if abs(value(1e-2) - value(-1e-2)) > 0:
                return "failed", "the result depends on the input but carries no gradient; do not detach"
            return "absent", "the result does not depend on the input"
        (gradient,) = torch.autograd.grad((found.double() * weight).sum(), given)
    ours = float((gradient * direction).sum())
    scale = max(abs(ours), float((gradient.norm() * direction.norm()) / wide.numel() ** 0.5), 1e-12)
    # An edit that calculates in float32 leaves rounding noise at small steps; a kink shows at large ones.
    errors = [abs((value(e) - value(-e)) / (2 * e) - ours) / scale for e in (1e-2, 1e-3, 1e-4, 1e-5)]
    if min(errors) <= 1e-3:
        return "passed", f"along a random direction within {min(errors):.0e} of central differences"
    return "failed", f"along a random direction off by {min(errors):.1e} of central differences"


def _half(make: Callable[[int], Any], hidden_BTD: Tensor, dtype: torch.dtype) -> Answer:
    intervention = make(hidden_BTD.shape[-1])
    given = hidden_BTD.to(dtype)
    found, expected = _applied(intervention, given.clone()), _applied(intervention, given.float())
    if found.dtype != dtype:
        return "failed", f"given {dtype}, returned {found.dtype}; cast the result with .to(hidden)"
    if not bool(torch.isfinite(found).all()):
        return "failed", f"the result holds NaN or infinity in {dtype}"
    off = distance(found.float(), expected)
    limit = 5e-2
    return ("passed" if off <= limit else "failed"), f"{off:.1e} of the largest number away from float32"


def _plan(model: nn.Module, intervention: Any, site: Site, hidden_BTD: Tensor) -> Answer:
    if not isinstance(intervention, Compilable):
        return "absent", "it has no operation(): it cannot be saved as a plan or run through nnsight"
    try:
        plan = compile_plan(model, {site: intervention})
    except ValueError as error:
        return "refused", str(error)
    found = _applied(plan.steps[0].operation, hidden_BTD.clone())
    outcome, told = agreed({"plan": distance(found, _applied(intervention, hidden_BTD.clone()))}, hidden_BTD.dtype)
    return outcome, f"operation {plan.steps[0].operation.name!r}; {told}"


def _at(rows: TokenRows, intervention: Any, site: Site) -> Answer:
    """The chosen tokens are those of the whole edit, the others keep their bits."""
    start, entering = 2, Site(site.layer, side="in")
    with captured(rows.model, [site, entering]) as before:
        rows.logits()
    with edited(rows.model, {site: At(intervention, From(start))}), captured(rows.model, [site]) as after:
        rows.logits()
    whole = _applied(intervention, before[site].clone(), entering=before[entering].clone())
    real_BT = rows.batch("right")["attention_mask"].bool()
    late_BT = real_BT & (torch.arange(real_BT.shape[1], device=real_BT.device) >= start)
    if not torch.equal(after[site][~late_BT], before[site][~late_BT]):
        return "failed", f"tokens before index {start}, or padding, changed"
    if not torch.equal(after[site][late_BT], whole[late_BT]):
        return "failed", f"tokens from index {start} are not what the edit gives without At"
    return "passed", f"tokens from index {start} changed, the others kept their bits"


def _generation(rows: TokenRows, intervention: Any, site: Site, hidden_BTD: Tensor) -> Answer:
    with edited(rows.model, {site: intervention}):
        (tokens, cached), (others, uncached) = rows.decoded(use_cache=True), rows.decoded(use_cache=False)
    outcome, told = agreed({"cache": distance(cached, uncached)}, cached.dtype)
    if outcome == "failed" and _order(partial(_applied, intervention), hidden_BTD)[0] == "absent":
        return "absent", f"what is added depends on a token's place in the forward pass, so a cache matters: {told}"
    return (outcome if torch.equal(tokens, others) else "failed"), told


def _hooks(rows: TokenRows, intervention: Any, site: Site) -> Answer:
    before = hooks_of(rows.model)
    with edited(rows.model, {site: intervention}):
        rows.logits()
    return ("passed" if hooks_of(rows.model) == before else "failed"), "none left after the block"
