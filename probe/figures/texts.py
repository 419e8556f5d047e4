"""Texts beside each other with what changed marked, by colour and underline in LaTeX, by signs in plain text."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from probe.figures.tables import escaped

_WORDS = re.compile(r"\S+")
# Mark of changed words in plain text: brackets survive where markup would not.
_OPEN, _CLOSE = "[", "]"


@dataclass(frozen=True)
class ChangedTexts:
    """A table of texts.

    Args:
        text: plain; changed words stand in brackets.
        latex: a ``tabular`` for booktabs; changed words are coloured and underlined.
    """

    text: str
    latex: str

    def write(self, folder: str | Path, name: str) -> dict[str, Path]:
        """Write ``name``.txt and ``name``.tex into a folder, made if missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = {"txt": folder / f"{name}.txt", "tex": folder / f"{name}.tex"}
        paths["txt"].write_text(self.text, encoding="utf-8")
        paths["tex"].write_text(self.latex, encoding="utf-8")
        return paths


def _changed_words(before: str, after: str) -> list[tuple[str, bool]]:
    """Each word of ``after`` with whether it is not in ``before`` at its place (a longest-matching-blocks alignment).

    Words that only ``before`` has leave no trace.
    """
    ours, theirs = _WORDS.findall(before), _WORDS.findall(after)
    kept = [False] * len(theirs)
    for block in SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks():
        kept[block.b : block.b + block.size] = [True] * block.size
    return [(word, not same) for word, same in zip(theirs, kept, strict=True)]


def changed_texts(examples: Sequence[tuple[str, Mapping[str, str]]], *, against: str, words: int = 40) -> ChangedTexts:
    """Texts of several variants to the same questions, changes against one of them marked.

    Args:
        examples: question, and variant -> text.
        against: the variant that the others are compared with; it is never marked.
        words: longer texts are cut there, with an ellipsis.

    Raises:
        ValueError: no examples, or one without the variant to compare with.
    """
    if not examples:
        raise ValueError("no texts to compare; give at least one question with its texts")
    plain: list[str] = []
    latex = [
        r"% needs \usepackage{booktabs,xcolor}",
        r"\definecolor{changed}{HTML}{D55E00}",
        r"\begin{tabular}{lp{0.78\linewidth}}",
        r"\toprule",
    ]
    for place, (question, texts) in enumerate(examples):
        if against not in texts:
            raise ValueError(f"the texts to {question!r} lack {against!r}, with which the others are compared")
        width = max(map(len, texts))
        plain += ["", question] if place else [question]
        latex += [r"\midrule"] if place else []
        latex += [rf"\multicolumn{{2}}{{l}}{{\textit{{{escaped(question)}}}}} \\"]
        for name, text in texts.items():
            marked = (
                [(w, False) for w in _WORDS.findall(text)] if name == against else _changed_words(texts[against], text)
            )
            more = len(marked) > words
            marked = marked[:words]
            plain.append(f"  {name:{width}}  {_plain(marked)}{' ...' if more else ''}")
            end = r" \dots \\" if more else r" \\"
            latex.append(f"{escaped(name)} & {_latex(marked)}{end}")
    return ChangedTexts("\n".join(plain) + "\n", "\n".join([*latex, r"\bottomrule", r"\end{tabular}"]) + "\n")


def _runs(marked: Sequence[tuple[str, bool]]) -> list[tuple[list[str], bool]]:
    """Neighbouring words of the same kind together."""
    runs: list[tuple[list[str], bool]] = []
    for word, is_changed in marked:
        if runs and runs[-1][1] == is_changed:
            runs[-1][0].append(word)
        else:
            runs.append(([word], is_changed))
    return runs


def _plain(marked: Sequence[tuple[str, bool]]) -> str:
    if not marked:
        return "(nothing)"
    return " ".join(f"{_OPEN}{' '.join(w)}{_CLOSE}" if is_changed else " ".join(w) for w, is_changed in _runs(marked))


def _latex(marked: Sequence[tuple[str, bool]]) -> str:
    if not marked:
        return r"\textit{(nothing)}"
    # One \underline a word: a longer one could not be broken over lines.
    return " ".join(
        rf"\textcolor{{changed}}{{\underline{{{escaped(word)}}}}}" if is_changed else escaped(word)
        for word, is_changed in marked
    )
