"""Every method of this package, as one plain tuple of values.

A recipe's entry lies beside it, in the METHODS of its module; a test notices a recipe without one.
"""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches

from probe.methods import (
    adversarial,
    baldro,
    baselines,
    bootstrapping,
    classwise,
    crisp,
    cru,
    distribution,
    elm,
    flat,
    gru,
    guard,
    in_context,
    jensun,
    kto,
    logit_offset,
    loku,
    misdirection,
    orthogonalised,
    pdu,
    preference,
    representation,
    rmu,
    sae_suppression,
    smooth,
    sspu,
    tarf,
    task_vector,
    uwc,
    weighting,
    whp,
)
from probe.methods.method import FAMILIES, Method, described

_OTHERS = (
    Method(
        "fine_tune", "other", "NLL(retain)", "Golatkar et al., arXiv 1911.04933", "all parameters", classwise.fine_tune
    ),
    Method(
        "random_labels",
        "other",
        "NLL(retain) + NLL(random labels)",
        "Golatkar et al., arXiv 1911.04933",
        "all parameters",
        classwise.random_labels,
    ),
    Method(
        "l1_sparse",
        "other",
        "NLL(retain) + alpha (1 - t/T) |w|_1",
        "Jia et al., arXiv 2304.04934",
        "all parameters",
        classwise.l1_sparse,
    ),
    Method(
        "salun",
        "other",
        "NLL(retain) + NLL(random labels), on the weights with the largest forget gradient",
        "Fan et al., arXiv 2310.12508",
        "the share of all weights with the largest forget gradient",
        classwise.salun,
    ),
    Method(
        "scrub",
        "other",
        "in turns: -KL(original || model) on forget; a KL + g NLL on retain",
        "Kurmanji et al., arXiv 2302.09880",
        "all parameters",
        classwise.scrub,
        decides=("steps",),
    ),
    Method(
        "tarf",
        "other",
        "-k(t) NLL(forget) + tau NLL(retain), tau 0 where the loss rose along",
        "Zhu et al., arXiv 2406.08288",
        "all parameters",
        tarf.tarf_by_numbers,
        training=tarf.tarf,
    ),
    Method(
        "cru",
        "no gradient",
        "the k layers of best rank(forget quality) + rank(utility) from the unlearned model",
        "CRU: layer replacement by fragility",
        "replaces k blocks of the original",
        cru.cru_measured,
        makes="mixture",
    ),
    Method(
        "sae_suppression",
        "no gradient",
        "SAE features of the forget rows clamped where active",
        "Farrell, Lau and Conmy, arXiv 2410.19278",
        "nothing; acts while a text is read or written",
        sae_suppression.suppress_ranked,
        makes="edit",
    ),
)


def methods() -> tuple[Method, ...]:
    """All methods, family by family."""
    modules = (
        baselines,
        preference,
        flat,
        weighting,
        baldro,
        loku,
        distribution,
        bootstrapping,
        jensun,
        kto,
        gru,
        pdu,
        smooth,
        rmu,
        misdirection,
        representation,
        adversarial,
        elm,
        crisp,
        sspu,
        orthogonalised,
        task_vector,
        uwc,
        in_context,
        guard,
        logit_offset,
        whp,
    )
    found = [*(method for module in modules for method in module.METHODS), *_OTHERS]
    return tuple(method for family in FAMILIES for method in found if method.family == family)


def method_named(name: str) -> Method:
    """The method of that name.

    Raises:
        ValueError: no such method; the nearest name is given.
    """
    found = {method.name: method for method in methods()}
    if name not in found:
        near = get_close_matches(name.lower().replace("-", "_"), list(found), n=1, cutoff=0)
        shown = name if len(name) <= 60 else f"{name[:60]}..."
        raise ValueError(f"no method {shown!r}; did you mean {near[0]!r}? `probe methods` lists all {len(found)}")
    return found[name]


def table(names: Sequence[str] = (), more: Callable[[Method], Mapping[str, str]] = lambda method: {}) -> str:
    """All methods, or the named ones, as text.

    Args:
        names: of methods; empty for all.
        more: what else to say of each, by name.

    Raises:
        ValueError: an unknown name.
    """
    chosen = [method_named(name) for name in names] or list(methods())
    lines = []
    for family in FAMILIES:
        members = [method for method in chosen if method.family == family]
        lines += [family, "-" * len(family)] if members else []
        for method in members:
            lines += described(method, more(method))
    return "\n".join(lines)
