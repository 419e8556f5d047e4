"""docs/validity.md, written from the numbers alone."""

from collections import Counter
from statistics import fmean
from typing import Any

from analyses.zoo.claims import judged_claims
from analyses.zoo.findings import Findings
from probe.verdict.features import FEATURES
from probe.verdict.logistic import CLASSES

_GOAL = 0.9
# Less than this changes nothing that 100 models could tell.
_NOTHING = 0.005
_CLAIMS_DRAWN = (
    "",
    "![six claims](validity_claims.png)",
    "",
    "One mark a model. Models that no longer work are left out of M4, M5 and S5. B1 to B3 are judged in "
    "[squeezing.md](squeezing.md).",
)


def validity(found: Findings) -> str:
    """The whole text."""
    parts = [
        _head(found),
        _models(found),
        _confusion(found),
        _wrong(found),
        _calibration(found),
        _rocs(found),
        _dropped(found),
        _variants(found),
        "\n".join(["## Claims of the literature, on these models", "", *judged_claims(found.zoo), *_CLAIMS_DRAWN]),
        _limits(found),
    ]
    return "\n\n".join(parts) + "\n"


def _head(found: Findings) -> str:
    held, n = found.by_family, len(found.by_family.labels)
    reached = "reaches" if held.accuracy >= _GOAL else "misses"
    return (
        "# How often is the verdict wrong?\n\n"
        "`probe verdict` says of a model whether it lost the facts (*removed*), still holds them (*hidden*), no longer "
        "works (*broken*) or tells them as before (*untouched*). This page is written by `python -m "
        "analyses.zoo build` from its own numbers.\n\n"
        f"**On families of models that the fit had never seen, {round(held.accuracy * n)} of {n} verdicts are right "
        f"({held.accuracy:.1%}).** That {reached} the goal of {_GOAL:.0%}. With whole seeds left out (other facts, "
        f"other weights, the same families) {found.by_seed.accuracy:.1%} are right."
    )


def _models(found: Findings) -> str:
    zoo, said = found.zoo, found.by_family.verdicts
    seconds = sum(r["seconds"] for r in zoo.records) / 60
    lines = [
        "## The models",
        "",
        f"{len(zoo.labels)} models over {len(zoo.baselines)} seeds ({seconds:.0f} minutes of one core to make and "
        "examine). A seed is a world of 50 authors with 10 facts each, 10 authors to be forgotten, and a Llama of "
        "width 64 and 4 blocks. A trunk learns everything but the forget facts; the original goes on from it with "
        "them. So a model that never knew can lie near the original (*branched before*) or far from it (*from "
        "scratch*), and distance does not give the truth away. Gates and filters are edits of hidden states over the "
        "original's weights. RMU, NPO and GradDiff have no truth by construction: they are *hidden* if relearning on "
        "half of the forget facts brings the other half back beyond the reference, a model that never knew (95 % "
        "t-interval over authors above 0), *removed* if not. The verdict's own relearning shows the half that this one "
        "scores, and the other way round; the two are still one kind of measurement, see *without relearning* below.",
        "",
        "Whatever its construction, a model is *broken* that keeps less than half of the original's retain accuracy "
        "beyond chance, and *untouched* that gives more than half of the forget answers word by word.",
        "",
        "| family | models | " + " | ".join(CLASSES) + " | right | tells | keeps |",
        "|---|---|" + "---|" * len(CLASSES) + "---|---|---|",
    ]
    for family in dict.fromkeys(zoo.families):
        rows = [i for i, one in enumerate(zoo.families) if one == family]
        counts = " | ".join(str(sum(zoo.labels[i] == one for i in rows) or "") for one in CLASSES)
        right = sum(zoo.labels[i] == said[i] for i in rows)
        told, kept = (fmean(zoo.records[i][key] for i in rows) for key in ("forget_choice", "retain_known"))
        lines.append(f"| {family} | {len(rows)} | {counts} | {right} | {told:.2f} | {kept:.2f} |")
    lines += ["", "*tells*, *keeps*: right answer chosen among six, forget and retain facts; chance is 0.17."]
    for title, names in (("Built as one thing, found to be another", zoo.moved), ("Not examined", zoo.failed)):
        if names:
            lines += ["", f"{title}: {'; '.join(names)}."]
    return "\n".join(lines)


def _confusion(found: Findings) -> str:
    lines = [
        "## What is taken for what, families left out",
        "",
        "| truth | " + " | ".join(CLASSES) + " |",
        "|---|" + "---|" * len(CLASSES),
    ]
    for true, row in found.by_family.confusion.items():
        lines.append(f"| {true} | " + " | ".join(str(row[one]) for one in CLASSES) + " |")
    return "\n".join([*lines, "", "![confusion matrix](validity_confusion.png)"])


def _wrong(found: Findings) -> str:
    held, zoo = found.by_family, found.zoo
    lines = ["## The wrong ones", ""]
    for i, (true, said) in enumerate(zip(held.labels, held.verdicts, strict=True)):
        if true != said:
            record = zoo.records[i]
            chances = dict(zip(CLASSES, held.probability_NC[i], strict=True))
            lines.append(
                f"- {record['name']} (seed {record['seed']}): {true}, taken for {said} ({chances[said]:.2f} against "
                f"{chances[true]:.2f}). {_why(zoo, i)}"
            )
    if len(lines) == 2:
        return "\n".join([*lines, "None."])
    lines += ["", _kinds_of_mistakes(held, zoo)]
    return "\n".join(lines)


def _kinds_of_mistakes(held: Any, zoo: Any) -> str:
    """What the mistakes have in common, by the means of what was measured on them."""
    said = []
    for (true, taken), count in Counter(zip(held.labels, held.verdicts, strict=True)).items():
        if true == taken:
            continue
        rows = [i for i, pair in enumerate(zip(held.labels, held.verdicts, strict=True)) if pair == (true, taken)]
        records = [zoo.records[i] for i in rows]
        never = [zoo.baselines[r["seed"]][1] for r in records]
        tells, keeps = (fmean(r[key] for r in records) for key in ("forget_choice", "retain_known"))
        pairs = ", ".join(
            f"{name} {fmean(r[key] for r in records):.2f} ({fmean(n[key] for n in never):.2f})"
            for name, key in (("relearning", "relearn_late_choice"), ("a push", "push_choice"), ("states", "content"))
        )
        said.append(f"{count} {true}, taken for {taken}: tells {tells:.2f}, keeps {keeps:.2f}, {pairs}")
    return (
        f"Together (means; in brackets a model that never knew): {'; '.join(said)}. Hidden facts pass for removed "
        "where states and push show no more than they do in a model that never knew and only relearning brings "
        "something back; they pass for untouched where most answers are still chosen rightly."
    )


def _why(zoo: Any, i: int) -> str:
    """The numbers that make a case hard: what it tells and keeps, and what attacks bring back."""
    record, (original, never) = zoo.records[i], zoo.baselines[zoo.records[i]["seed"]]
    said = (
        f"It tells {record['forget_choice']:.2f} and keeps {record['retain_known']:.2f}; relearning brings "
        f"{record['relearn_late_choice']:.2f} (never known: {never['relearn_late_choice']:.2f}), a push "
        f"{record['push_choice']:.2f} ({never['push_choice']:.2f}); its states show {record['content']:.2f} "
        f"({never['content']:.2f}; original {original['content']:.2f})."
    )
    if record["construction"] == "by relearning":
        low = record["relearn_excess_low"]
        said += f" Its truth hangs on an excess of {record['relearn_excess']:+.2f} with lower end {low:+.2f}."
    return said


def _calibration(found: Findings) -> str:
    held = found.by_family
    bins = "; ".join(f"{sure:.2f} said, {right:.2f} right ({n})" for sure, right, n in held.calibration)
    return (
        "## What a probability means\n\n"
        f"Expected calibration error {held.calibration_error:.3f} over five bins: {bins}. The temperature of each "
        "family's probabilities was chosen on the other families.\n\n![calibration](validity_calibration.png)"
    )


def _rocs(found: Findings) -> str:
    titles = list(found.rocs)
    lines = [
        "## Each diagnostic alone",
        "",
        "AUROC over the whole zoo. Below 0.5 low values speak for the first; 0.5 says nothing.",
        "",
        "| diagnostic | kind | " + " | ".join(titles) + " |",
        "|---|---|" + "---|" * len(titles),
    ]
    for f in FEATURES:
        values = " | ".join(f"{found.rocs[title][f.name].auroc:.2f}" for title in titles)
        lines.append(f"| {f.name} | {f.group} | {values} |")
    return "\n".join([*lines, "", "![ROC curves](validity_roc.png)"])


def _dropped(found: Findings) -> str:
    lines = [
        "## Which diagnostics add nothing",
        "",
        "Change of accuracy and of log loss on families left out without a diagnostic, at one penalty. "
        "A log loss that falls means that the verdict is better without it.",
        "",
        "| left out | accuracy | log loss |",
        "|---|---|---|",
    ]
    for name, (accuracy, loss) in found.grouped.items():
        lines.append(f"| all {name} | {accuracy:+.3f} | {loss:+.3f} |")
    for name, (accuracy, loss) in sorted(found.dropped.items(), key=lambda item: -item[1][1]):
        lines.append(f"| {name} | {accuracy:+.3f} | {loss:+.3f} |")
    idle = [name for name, (accuracy, loss) in found.dropped.items() if loss < _NOTHING and accuracy <= 0]
    lines += ["", f"Beside the others these add nothing here: {', '.join(idle) or 'none'}."]
    return "\n".join(lines)


def _variants(found: Findings) -> str:
    lines = [
        "## With more and with less",
        "",
        "| diagnostics | right, family left out | log loss | calibration error |",
        "|---|---|---|---|",
    ]
    for name, held in found.variants.items():
        lines.append(f"| {name} | {held.accuracy:.3f} | {held.log_loss:.3f} | {held.calibration_error:.3f} |")
    told = (
        "*alone* is what `probe verdict` uses without `--retrained`. With a retrained model, its value is the floor "
        "that choices and probabilities are measured from; the reference that sets the truth of RMU, NPO and GradDiff "
        "plays that part here. *Without relearning* shares no kind of measurement with that truth."
    )
    return "\n".join([*lines, "", told])


def _limits(found: Findings) -> str:
    return (
        "## Limits\n\n"
        "The zoo's models are small and its facts short; error rates hold for models and methods like these. On a "
        "model of another kind see [validity_stories.md](validity_stories.md). `probe verdict` says *cannot tell* of a "
        "model whose nearest neighbour in the zoo, over all diagnostics at once, lies further away than nine tenths of "
        f"the zoo's models lie from other families; of the {len(found.by_family.labels)} verdicts above "
        f"{int(found.by_family.beyond_N.sum())} would not be given. Three seeds of one recipe are no sample of all "
        "models: models of one recipe err together, so the number of independent cases is "
        f"nearer to the number of recipes ({len({r['name'] for r in found.zoo.records})}) than to that of models."
    )
