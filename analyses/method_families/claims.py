"""Published claims, judged by the numbers of ``analyses.method_families``."""

from statistics import fmean

from analyses.shared import FAILS, HOLDS, UNKNOWN, Record, runs_of
from probe.methods.sequential import compounded_loss
from probe.metrics.intervals import Interval
from probe.rows import Row

RAW, CALIBRATED = ("raw", "retain"), ("calibrated", "forget")
# Method; what its source says of it, in our words; what that makes higher, what lower, and where.
OF_METHODS = (
    ("ga", "forgets, and loses the rest (TOFU)", "original", "ga", RAW),
    ("grad_diff", "a retain term keeps what GA loses (TOFU)", "grad_diff", "ga", RAW),
    ("ga_kl", "KL keeps more than NLL (arXiv 2502.19301)", "ga_kl", "grad_diff", RAW),
    ("npo", "forgets more than GA at equal retention (2404.05868)", "ga", "npo", CALIBRATED),
    ("simnpo", "forgets more than NPO (2410.07163)", "npo", "simnpo", CALIBRATED),
    ("wga", "forgets more than GA's equal weights (2502.19301)", "grad_diff", "wga", CALIBRATED),
    ("tnpo", "forgets more than NPO (2502.19301)", "npo", "tnpo", CALIBRATED),
    ("wtnpo", "forgets more than TNPO (2502.19301)", "tnpo", "wtnpo", CALIBRATED),
    ("sat_imp", "forgets more than WGA (2505.11953)", "wga", "sat_imp", CALIBRATED),
    ("max_entropy", "forgets more than GA (2410.08109)", "ga", "max_entropy", CALIBRATED),
    ("undial", "does not lose the rest as GA does (2402.10052)", "undial", "ga", RAW),
    ("ce_u", "keeps the rest without a retain term (2503.01224)", "ce_u", "ga", RAW),
    ("rmu", "keeps more than divergence does (2403.03218, 2510.07626)", "rmu", "grad_diff", RAW),
    ("adaptive_rmu", "forgets more than RMU (2408.06223)", "rmu", "adaptive_rmu", CALIBRATED),
    ("rr", "keeps more than divergence does (2406.04313)", "rr", "grad_diff", RAW),
    ("idk", "keeps more than GA (TOFU)", "idk", "ga", RAW),
    ("idk_ap", "keeps more than IDK alone (2410.08109)", "idk_ap", "idk", RAW),
    ("idk_dpo", "forgets less than NPO (2404.05868)", "idk_dpo", "npo", CALIBRATED),
    ("alt_po", "forgets more than refusals (2409.13474)", "idk", "alt_po", CALIBRATED),
)
Where = tuple[str, str]


def compared(rows: list[Row], high: str, low: str, where: Where) -> tuple[str, str]:
    """Whether ``high`` is the higher one, and both numbers; where intervals over seeds overlap, nobody knows."""
    found = {(r.intervention, r.on, r.quantity): r for r in rows}
    one, other = (_interval(found.get((name, *where))) for name in (high, low))
    if one is None or other is None:
        return "not measured", ""
    # One seed has no interval; the references are no draws and need none.
    seeded = all(x.n > 1 or name in ("original", "retrained") for name, x in ((high, one), (low, other)))
    apart = seeded and (one.low > other.high or other.low > one.high)
    verdict = UNKNOWN if not apart else HOLDS if one.mean > other.mean else FAILS
    return verdict, f"{high} {one}; {low} {other}; {where[0]} {where[1]} probability"


def _interval(row: Row | None) -> Interval | None:
    """A row's numbers; its mean alone where it has no ends."""
    if row is None or row.value is None:
        return None
    low, high = (row.value if end is None else end for end in (row.low, row.high))
    return Interval(row.value, low, high, row.n or 0)


def of_methods(rows: list[Row]) -> str:
    """One line a method: what its source says, and what came out; a Markdown table."""
    lines = ["| method | its source says, in our words | here | numbers |", "|---|---|---|---|"]
    for method, claim, high, low, where in OF_METHODS:
        verdict, numbers = compared(rows, high, low, where)
        lines.append(f"| {method} | {claim} | {verdict} | {numbers} |")
    return "\n".join(lines) + "\n"


def judged(rows: list[Row], runs: list[Record], n_requests: int) -> list[str]:
    """What the numbers say of the documents' claims.

    Where intervals over seeds overlap, nothing can be told; S4 and C4, on requests in sequence, go by means alone.
    """
    found = {(r.intervention, r.on, r.quantity): r for r in rows}

    def forget(name: str) -> float:
        row = found.get((name, "calibrated", "forget"))
        return float("nan") if row is None or row.value is None else row.value

    def line(claim: str, high: str, low: str, where: Where) -> str:
        verdict, numbers = compared(rows, high, low, where)
        return f"{claim}: {verdict} ({numbers})." if numbers else f"{claim}: {verdict}."

    weighted = min(("wga", "tnpo", "wtnpo", "sat_imp"), key=forget)
    others = min(("idk", "idk_ap", "rmu", "adaptive_rmu"), key=forget)
    # Claim, what should be higher, what lower, where: less forget probability at equal retention is more forgetting.
    claims = [
        ("G1 gradient ascent loses retention", "original", "ga", RAW),
        ("G4 NPO harms retention less than GA, both without a retain term", "npo alone", "ga", RAW),
        ("G7 with KL for NLL as retain term more is kept", "ga_kl", "grad_diff", RAW),
        ("G9 the best weighted GA forgets more than the best of PO and RMU", others, weighted, CALIBRATED),
        ("G10 weighting tokens forgets more than not weighting them", "grad_diff", weighted, CALIBRATED),
        ("C1 maximum entropy forgets more than GA", "ga", "max_entropy", CALIBRATED),
        ("C2 answer preservation keeps more than IDK alone", "idk_ap", "idk", RAW),
        ("M3 RMU keeps more utility than GradDiff", "rmu", "grad_diff", RAW),
        ("S3 acting on the likely half of tokens harms utility less", "ga, likely half", "ga", RAW),
        ("S3 acting on the unlikely half of tokens harms utility less", "ga, unlikely half", "ga", RAW),
    ]
    return [
        *(line(*claim) for claim in claims),
        "G5, G6, G8 are about weights and sizes: see analyses.g_effects.",
        *_sequences(runs, n_requests),
    ]


def _sequences(runs: list[Record], n_requests: int) -> list[str]:
    """S4 and C4: what is lost request after request."""
    lines = []
    for name, claim in (
        ("grad_diff", "S4 utility lost compounds"),
        ("idk", "C4 targeted unlearning degrades in sequence"),
    ):
        own = runs_of(runs, f"{name} in sequence")
        if not own:
            lines.append(f"{claim}: not measured.")
            continue
        lost = [fmean(r[f"lost after {n}"] for r in own) for n in range(1, n_requests + 1)]
        # Compounding is what the first loss would come to if each request cost the same share.
        expected = (
            compounded_loss(n_requests, share=min(max(lost[0], 0.0), 1.0)) if name == "grad_diff" else lost[0] + 0.02
        )
        verdict = HOLDS if lost[-1] >= expected else FAILS
        shown = ", ".join(f"{x:.3f}" for x in lost)
        lines.append(
            f"{claim}: {verdict} ({name}, retain probability lost after 1 to {n_requests} requests: {shown}; "
            f"3 % a request would be {compounded_loss(n_requests, share=0.03):.3f}; {len(own)} seeds)."
        )
    return lines
