"""What models write with one layer replaced, from rows: the changed words marked."""

from collections.abc import Sequence

from probe.figures.entry import TableEntry
from probe.figures.style import ordered, picked
from probe.figures.texts import ChangedTexts, changed_texts
from probe.rows import Row

DIAGNOSTIC = "replaced_text"
QUESTION = "question"


def _text_rows(rows: Sequence[Row], *, words: int = 40) -> ChangedTexts:
    """For each question the texts of the original, of each layer replaced alone, and of the unlearned model.

    Args:
        rows: "replaced_text" rows: ``on`` is the text, ``item`` the question's number, ``layer`` the replaced layer
            (None: the whole model); the question itself is a row of the intervention "question". The value is a score
            of the text and is not shown.
        words: longer texts are cut there.

    Raises:
        ValueError: no such rows, or questions without the original's text.
    """
    found = picked(rows, DIAGNOSTIC, {r.quantity for r in rows if r.diagnostic == DIAGNOSTIC})
    methods = [n for n in ordered(r.intervention for r in found) if n not in (QUESTION, "original")]
    examples = []
    for item in sorted({r.item or 0 for r in found}):
        own = [r for r in found if (r.item or 0) == item]
        question = next((r.on for r in own if r.intervention == QUESTION), f"question {item}")
        originals = [r.on for r in own if r.intervention == "original"]
        texts = {"original": originals[0]} if originals else {}
        for name in methods:
            label = "" if len(methods) == 1 else f"{name}, "
            mine = sorted((r for r in own if r.intervention == name), key=lambda r: (r.layer is None, r.layer or 0))
            texts |= {name if r.layer is None else f"{label}layer {r.layer}": r.on for r in mine}
        examples.append((question, texts))
    return changed_texts(examples, against="original", words=words)


REPLACED_TEXTS = TableEntry(
    "texts",
    "T3",
    "Layer replacement in words",
    (DIAGNOSTIC,),
    _text_rows,
    """What the model writes with one layer replaced by that of the unlearned model; words that the original does not
    write there are coloured and underlined.""",
)
