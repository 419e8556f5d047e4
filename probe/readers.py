"""Benchmarks on disk: TOFU by the name of its split, MUSE's folders, multiple choice, plain texts."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from probe.data import QA
from probe.datasets import qa_row
from probe.records import Record, fields, read_records, read_text, text_of

TOFU_SETS = ("retain_perturbed", "real_authors_perturbed", "world_facts_perturbed")


@dataclass(frozen=True)
class Tofu:
    """The four sets that a TOFU evaluation asks about, and rows that no model was trained on.

    Args:
        split: "forget10", say.
        forget: ``{split}_perturbed``: with a paraphrased and five wrong answers.
        retain: ``retain_perturbed``.
        real_authors, world_facts: with three wrong answers and no paraphrase.
        holdout: ``holdout10`` for ``forget10``; only in the newer files of the hub, empty where absent.
    """

    split: str
    forget: tuple[QA, ...]
    retain: tuple[QA, ...]
    real_authors: tuple[QA, ...]
    world_facts: tuple[QA, ...]
    holdout: tuple[QA, ...] = ()


@dataclass(frozen=True)
class Choice:
    """One multiple-choice question; ``answer`` counts the choices from 0."""

    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str = ""


@dataclass(frozen=True)
class Continuation:
    """A passage of the forget corpus: the model is shown ``prompt`` and should not know how it goes on."""

    prompt: str
    continuation: str


@dataclass(frozen=True)
class MuseData:
    """What a folder of MUSE (Shi et al., arXiv 2407.06460) holds; empty where a file is absent.

    Args:
        verbatim: ``verbmem/forget``.
        forget_qa, retain_qa: ``knowmem/forget_qa`` and ``retain_qa``.
        forget_examples, retain_examples: ``knowmem/*_qa_icl``, shown before each question.
        forget_texts, retain_texts, holdout_texts: ``privleak/forget``, ``retain`` and ``holdout``.
    """

    verbatim: tuple[Continuation, ...] = ()
    forget_qa: tuple[QA, ...] = ()
    retain_qa: tuple[QA, ...] = ()
    forget_examples: tuple[QA, ...] = ()
    retain_examples: tuple[QA, ...] = ()
    forget_texts: tuple[str, ...] = ()
    retain_texts: tuple[str, ...] = ()
    holdout_texts: tuple[str, ...] = ()


def read_tofu(source: str | Path, split: str) -> Tofu:
    """The sets of one TOFU split (Maini et al., arXiv 2401.06121).

    Args:
        source: folder of TOFU's files (``forget10_perturbed.json``, ...), or ``owner/name`` on the hub
            (``locuslab/TOFU``), which is asked only where no such folder exists.
        split: "forget01", "forget05", "forget10", or any other with a ``_perturbed`` file.

    Raises:
        FileNotFoundError: no such folder, or a set's file is missing.
        ValueError: an unknown split, malformed rows, or rows that lack what their set is asked about.

    >>> tofu = probe.read_tofu("folder-of-tofu", "forget10")  # doctest: +SKIP
    """
    folder = Path(source)
    names = tofu_splits(folder) if folder.is_dir() else ()
    if folder.is_dir() and split not in names:
        raise ValueError(f"{folder} has no split {split!r}{_near(split, names)}; found {', '.join(names) or 'none'}")
    if not re.fullmatch(r"forget\d+", split):
        raise ValueError(f"{split!r} is not a split to be forgotten; expected forget01, forget05 or forget10")
    sets = {name: tofu_set(source, name) for name in (f"{split}_perturbed", *TOFU_SETS)}
    forget, retain, authors, facts = sets.values()
    _check_wrong(source, f"{split}_perturbed", forget, paraphrased=True)
    _check_wrong(source, "retain_perturbed", retain, paraphrased=True)
    _check_wrong(source, "real_authors_perturbed", authors, paraphrased=False)
    _check_wrong(source, "world_facts_perturbed", facts, paraphrased=False)
    holdout = split.replace("forget", "holdout")
    unseen = tofu_set(source, holdout) if folder.is_dir() and _file(folder, holdout) else ()
    return Tofu(split, forget, retain, authors, facts, unseen)


def tofu_splits(folder: str | Path) -> tuple[str, ...]:
    """Names of the splits whose ``_perturbed`` file lies in a folder."""
    stems = {path.stem for path in Path(folder).glob("*_perturbed.json*")}
    return tuple(sorted(name for stem in stems if (name := stem.removesuffix("_perturbed")).startswith("forget")))


def tofu_set(source: str | Path, name: str) -> tuple[QA, ...]:
    """One file of TOFU ("full", "retain90", "world_facts_perturbed", ...), from a folder or a hub name.

    Raises:
        FileNotFoundError: neither a folder with that file nor a hub name.
        ValueError: malformed rows, or the hub cannot be reached.
    """
    folder = Path(source)
    if folder.is_dir():
        path = _file(folder, name)
        if path is None:
            there = sorted({path.stem for path in folder.glob("*.json*")})
            raise FileNotFoundError(
                f"{folder} has no {name}.json{_near(name, there)}; found {', '.join(there) or 'no JSON file'}"
            )
        return tuple(qa_row(record) for record in read_records(path))
    return tuple(qa_row(record) for record in _from_hub(str(source), name))


def read_choices(path: str | Path) -> tuple[Choice, ...]:
    """Multiple choice in the layout of WMDP and MMLU: ``question``, ``choices``, ``answer`` (an index from 0).

    Raises:
        FileNotFoundError: no such file.
        ValueError: a malformed row; the message gives path, line and what was found.

    >>> from pathlib import Path
    >>> _ = Path("wmdp.jsonl").write_text('{"question": "2 + 2?", "choices": ["3", "4"], "answer": 1}')
    >>> probe.read_choices("wmdp.jsonl")[0].answer
    1
    """
    return tuple(_choice(record) for record in read_records(path))


def read_texts(path: str | Path) -> tuple[str, ...]:
    """Plain texts: JSON (texts, or objects with ``text``), else pieces of a text file parted by blank lines.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a malformed row, or no text in the file.

    >>> from pathlib import Path
    >>> _ = Path("texts.txt").write_text("One text." + 2 * chr(10) + "Another.")
    >>> probe.read_texts("texts.txt")
    ('One text.', 'Another.')
    """
    path = Path(path)
    if path.suffix in (".json", ".jsonl"):
        return tuple(_text(record) for record in read_records(path))
    texts = tuple(piece.strip() for piece in re.split(r"\n[ \t]*\r?\n", read_text(path)) if piece.strip())
    if not texts:
        raise ValueError(f"{path} holds no text")
    return texts


def read_muse(folder: str | Path) -> MuseData:
    """A corpus of MUSE: ``verbmem``, ``knowmem`` and ``privleak`` as its repository lays them out.

    Fields: ``prompt`` and ``gt``; ``question`` and ``answer``; texts, or objects with ``text``.

    Raises:
        FileNotFoundError: no such folder, or none of MUSE's files in it.
        ValueError: a malformed row; the message gives path, line and what was found.

    >>> muse = probe.read_muse("folder-of-muse-news")  # doctest: +SKIP
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder} (resolved to {folder.resolve()})")

    def there(name: str) -> list[Record]:
        path = _file(folder, name)
        return [] if path is None else read_records(path)

    qa = {name: tuple(map(qa_row, there(f"knowmem/{name}"))) for name in _MUSE_QA}
    texts = {name: tuple(map(_text, there(f"privleak/{name}"))) for name in ("forget", "retain", "holdout")}
    verbatim = tuple(map(_continuation, there("verbmem/forget")))
    if not any((verbatim, *qa.values(), *texts.values())):
        listed = "verbmem/forget.json, knowmem/forget_qa.json, privleak/forget.json"
        raise FileNotFoundError(f"{folder} has none of MUSE's files ({listed}, ...); pass the folder of one corpus")
    return MuseData(
        verbatim=verbatim,
        forget_qa=qa["forget_qa"],
        retain_qa=qa["retain_qa"],
        forget_examples=qa["forget_qa_icl"],
        retain_examples=qa["retain_qa_icl"],
        forget_texts=texts["forget"],
        retain_texts=texts["retain"],
        holdout_texts=texts["holdout"],
    )


_MUSE_QA = ("forget_qa", "retain_qa", "forget_qa_icl", "retain_qa_icl")


def _file(folder: Path, name: str) -> Path | None:
    return next((path for end in (".json", ".jsonl") if (path := folder / f"{name}{end}").is_file()), None)


def _near(name: str, names: Sequence[str]) -> str:
    near = get_close_matches(name, names, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _check_wrong(source: str | Path, name: str, rows: Sequence[QA], *, paraphrased: bool) -> None:
    """What truth ratios are made of must be there, or some would be computed from other texts than others."""
    bare = [i for i, row in enumerate(rows, 1) if not row.perturbed_answer]
    bare = bare or [i for i, row in enumerate(rows, 1) if paraphrased and not row.paraphrased_answer]
    counts = sorted({len(row.perturbed_answer) for row in rows})
    if bare:
        missing = "perturbed_answer" if not rows[bare[0] - 1].perturbed_answer else "paraphrased_answer"
        raise ValueError(
            f"{source}: {len(bare)} of {len(rows)} rows of {name} have no {missing} (first: row {bare[0]}), and truth "
            "ratio needs one; take TOFU's own file of that name"
        )
    if len(counts) > 1:
        raise ValueError(
            f"{source}: rows of {name} have between {counts[0]} and {counts[-1]} perturbed answers; truth ratio needs "
            "equally many"
        )


def _from_hub(name: str, config: str) -> Iterable[Record]:
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise FileNotFoundError(
            f"no folder at {name} (resolved to {Path(name).resolve()}); pass a folder with TOFU's files, or "
            "locuslab/TOFU to load them from the hub"
        )
    # Heavy, and asked for only by those who name the hub.
    from datasets import load_dataset

    try:
        rows: Iterable[Mapping[str, Any]] = load_dataset(name, config, split="train")
    except Exception as error:
        raise ValueError(
            f"no folder at {name}, and the hub gave no {config} of {name} ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); download the files and pass their folder"
        ) from None
    return (Record(f"{name}/{config}: row {i}", dict(row)) for i, row in enumerate(rows, 1))


def _choice(record: Record) -> Choice:
    value = fields(record, ("question", "choices", "answer"), ("subject",))
    choices, answer = value["choices"], value["answer"]
    if not isinstance(choices, list) or not all(isinstance(text, str) for text in choices) or len(choices) < 2:
        raise ValueError(
            f"{record.where}, field 'choices' is {str(choices)[:40]!r}; expected a list of two or more texts"
        )
    if isinstance(answer, str) and len(answer) == 1 and answer.isupper():
        # MMLU's original files give letters.
        answer = ord(answer) - ord("A")
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise ValueError(
            f"{record.where}, field 'answer' is {value['answer']!r}; expected an index from 0 to {len(choices) - 1}"
        )
    return Choice(text_of(record, "question", needed=True), tuple(choices), answer, text_of(record, "subject"))


def _continuation(record: Record) -> Continuation:
    fields(record, ("prompt", "gt"))
    return Continuation(text_of(record, "prompt", needed=True), text_of(record, "gt", needed=True))


def _text(record: Record) -> str:
    if isinstance(record.value, str):
        record = Record(record.where, {"text": record.value})
    fields(record, ("text",))
    return text_of(record, "text", needed=True)
