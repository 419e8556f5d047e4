"""What the shell and sweep files ask of every command, and what most commands do alike."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated, Any

import tyro

import probe.commands
from probe.options import Compute, DictionaryOptions, Options, Resumed, Rows
from probe.ranges import ModelName, check_ranges

if TYPE_CHECKING:
    from probe.rows import Row
    from probe.runs.folder import Run
    from probe.study.study import Study


@dataclass(frozen=True, kw_only=True)
class OneModel(Options):
    """The model that a command looks at."""

    model: Annotated[tyro.conf.Positional[ModelName], tyro.conf.arg(metavar="MODEL")]
    """Folder of safetensors, or a hub name."""


@dataclass(frozen=True, kw_only=True)
class Command(Options):
    """One command: its fields are the options, its docstring the help."""

    def check(self) -> None:
        """Refuse what cannot be run, before anything is loaded.

        Raises:
            ValueError: numbers outside of their range, or options that do not go together.
        """
        check_ranges(self)

    def run(self) -> str:
        """Do the work; what to print when it is done."""
        raise NotImplementedError

    def determines(self) -> Mapping[str, Any]:
        """What else decides the numbers of a sweep's cell besides options and files; refuses what cannot be run."""
        self.check()
        return {}

    def numbers(self) -> dict[str, Any]:
        """Run, and give every row's value by a name such as "forget_probability": the numbers of a sweep's cell."""
        from probe.commands.numbers import flat
        from probe.rows import load

        self.run()
        out: Path = getattr(self, "out")  # noqa: B009
        return {**flat(load(out / "rows.jsonl"))}

    @classmethod
    def further(cls) -> Mapping[str, str]:
        """Names that a sweep file may use as fields, too, each with the option that takes it as "name=value"."""
        return {}

    @classmethod
    def small(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Options for a quick trial of a sweep's cell with these values."""
        return {"limit": 4} if "limit" in {field.name for field in fields(cls)} else {}


@dataclass(frozen=True, kw_only=True)
class Measurement(Command, Rows, Compute, Resumed):
    """A command that looks at models on rows and writes a folder of results."""

    def check(self) -> None:
        """Refuse half a description: models with their rows, or neither, for the testbed."""
        super().check()
        self.check_rows(self.needed())

    def needed(self) -> dict[str, str | None]:
        """Flags of the models that belong to the rows, and what they were given."""
        return {"--original": getattr(self, "original", None)}

    def determines(self) -> Mapping[str, Any]:
        """The hash of the testbed's weights, where no model is named_by_folder."""
        self.check()
        return {} if self.forget is not None else testbed_hash()

    def folder(self, name: str) -> Path:
        """Where results go: ``out``, or results/NAME."""
        return self.out or Path("results") / name

    def study(self, *, distinct: bool = True, **models: str | None) -> "Study":
        """The models that the options name and the rows, or the testbed.

        Args:
            distinct: whether two models may not have the same weights.
            models: more models by name; None is passed over.

        Raises:
            FileNotFoundError, ValueError: as ``probe.study.loading.load_study``.
        """
        from probe.study.loading import load_study, named_by_folder, testbed, with_dictionary, with_models

        original = getattr(self, "original", None)
        found = {name: path for name, path in models.items() if path is not None}
        found |= named_by_folder(getattr(self, "unlearned", ()))
        if original is None:
            for name in ("retrained", "sae", "tokenizer"):
                if getattr(self, name, None) is not None:
                    raise ValueError(f"--{name} needs --original, --forget and --retain; the testbed has its own")
            bed = testbed(limit=self.limit, device=self.device, dtype=self.dtype)
            bed = with_dictionary(bed, bed.sae, bed.sae_site) if isinstance(self, DictionaryOptions) else bed
            try:
                return with_models(bed, found, self, distinct=distinct) if found else bed
            except ValueError as error:
                error.add_note("without --original, --forget and --retain a model is taken for an unlearned testbed")
                raise
        retrained = getattr(self, "retrained", None)
        found = {"original": original, **({} if retrained is None else {"retrained": retrained}), **found}
        dictionary = self if isinstance(self, DictionaryOptions) else DictionaryOptions()
        return load_study(found, self, self, dictionary, tokenizer=getattr(self, "tokenizer", None), distinct=distinct)

    @contextmanager
    def writing(self, name: str) -> Iterator[tuple["Run", "Study"]]:
        """The folder of results, complete when the block ends, and the study; the manifest says what it is."""
        import torch

        from probe.modes import threads
        from probe.runs.folder import results

        self.check()
        with results(self.folder(name), self) as run, threads(self.threads or torch.get_num_threads()):
            study = self.study()
            run.manifest.update(study.described())
            yield run, study

    def write(
        self, run: "Run", notes: Sequence[str], rows: "Sequence[Row]", table: str, figures: Sequence[str] = ()
    ) -> str:
        """Write rows.jsonl, table.txt with the notes below it, and those figures that the rows allow; give the text."""
        from probe.figures import draw_all
        from probe.figures.folder import origin
        from probe.rows import append, load

        append(run.folder / "rows.jsonl", rows)
        text = "\n".join([table.rstrip("\n"), *notes]) + "\n"
        (run.folder / "table.txt").write_text(text, encoding="utf-8")
        if figures:
            drawn = load(run.folder / "rows.jsonl")
            draw_all(drawn, run.folder / "figures", only=figures, metadata=origin(run.folder))
        return text


def command_names() -> list[str]:
    """Every command as it is written in the shell: "g-effect", "sae rank"."""
    files = [module.name for module in iter_modules(probe.commands.__path__) if not module.ispkg]
    return sorted(_written(name) for name in files if _class_in(name) is not None)


def command_named(name: str) -> type[Command]:
    """The class of a command.

    Raises:
        KeyError: no such command.
    """
    for module in iter_modules(probe.commands.__path__):
        if not module.ispkg and _written(module.name) == name and (found := _class_in(module.name)) is not None:
            return found
    raise KeyError(name)


def testbed_hash() -> dict[str, str]:
    """The hash of the shipped weights, on which a sweep's cell without a model depends."""
    from probe.sweep.inputs import content_hash
    from probe.testbed.bed import WEIGHTS

    return {"testbed": content_hash(WEIGHTS)}


def sae_notes(study: "Study") -> tuple[str, ...]:
    """What is written below a table about a dictionary: how much it leaves unexplained, and the study's notes."""
    fits = ", ".join(f"{value:.3g} at layer {layer}" for layer, value in study.sae_fvu.items())
    return (f"variance unexplained: {fits}", *study.notes)


def written_json(path: Path, value: Any) -> None:
    """A value as a JSON file."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _written(file: str) -> str:
    return file.replace("sae_", "sae ", 1) if file.startswith("sae_") else file.replace("_", "-")


def _class_in(file: str) -> type[Command] | None:
    """The command that a file of this room defines; None for a file that only serves others."""
    module = import_module(f"probe.commands.{file}")
    own = [one for one in vars(module).values() if isinstance(one, type) and one.__module__ == module.__name__]
    found = [one for one in own if issubclass(one, Command) and not one.__name__.startswith("_")]
    return found[0] if found and file != "command" else None
