"""The template that a command was asked for, or that the models it is given were unlearned with."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from probe.options import Rows
from probe.templates.chat import chat_template
from probe.templates.coding import coded
from probe.templates.template import TEMPLATES, Template


@dataclass(frozen=True)
class Chosen:
    """A template, and where it is from.

    Args:
        template: what it is.
        name: "plain", "chat", "as in FOLDER/manifest.json", ...
        date: what a chat template that asks for the date was told.
    """

    template: Template
    name: str
    date: str | None = None

    def described(self) -> dict[str, Any]:
        """What a manifest says of it, and ``chosen`` reads there."""
        return {"name": self.name, "date": self.date, **asdict(self.template)}

    @property
    def note(self) -> str:
        """One line for readers of a result."""
        day = f", on {self.date}" if self.date else ""
        whose = "" if self.template.convention == "template" else f", tokens as {self.template.convention} has them"
        return f"template {self.name}{day}{whose}"


def chosen(rows: Rows, tokenizer: Any, models: Sequence[str | Path | None] = ()) -> Chosen:
    """What was asked for; else what the manifests of the models say; else plain.

    Args:
        rows: the command's options.
        tokenizer: whose chat template is taken.
        models: folders or hub names of the models that will read the texts; None is passed over.

    Raises:
        ValueError: a chat template that cannot be used, a system's message without a chat, or manifests that
            contradict one another.
    """
    recorded = {
        str(name): found for name in models if name is not None and (found := _recorded(Path(name))) is not None
    }
    if not rows.chooses_template and recorded:
        if len({_words(one) for one in recorded.values()}) > 1:
            raise ValueError(
                f"the models were unlearned with different templates, by the manifests of {' and '.join(recorded)}; "
                "choose one with --template, or --prompt and --answer"
            )
        name, template = next(iter(recorded.items()))
        return Chosen(_with_options(template, rows), f"as in {Path(name) / 'manifest.json'}")
    ours = _named(rows, tokenizer)
    for name, template in recorded.items():
        if _words(template) != _words(ours.template):
            warnings.warn(
                f"{name} was unlearned with another template (prompt {template.prompt[:60]!r}) than is asked with now "
                f"({ours.template.prompt[:60]!r}); its answers may differ for that alone",
                stacklevel=3,
            )
    return ours


def check_log(path: Path, ours: Chosen, tokenizer: Any) -> None:
    """Warn where a log that is compared with has a chat's tokens otherwise than they are here.

    OpenUnlearning's logs do not say what they were asked with. Its code has an answer end in eos besides the end of
    the turn, and attends to no token that equals the pad token, the end of every turn in a prompt where pad is eos.

    Args:
        path: of the log.
        ours: what is asked with now.
        tokenizer: of the models.
    """
    known = _recorded(path.parent)
    if known is not None:
        if known.convention != ours.template.convention or _words(known) != _words(ours.template):
            warnings.warn(
                f"{path} was written with another template ({known.prompt[:60]!r}, tokens as {known.convention}), "
                "and its numbers differ for that alone; ask both models alike",
                stacklevel=3,
            )
        return
    if not ours.template.is_chat or ours.template.convention == "open-unlearning":
        return
    here, there = (
        coded(tokenizer, [("Who?", "Ann.")], replace(ours.template, convention=name))[0].ids
        for name in ("template", "open-unlearning")
    )
    if here != there or tokenizer.pad_token_id in here:
        warnings.warn(
            f"{path} does not say how a chat became tokens. OpenUnlearning has an answer end in eos "
            "besides its turn, and attends to no token that equals the pad token; if it wrote the log, pass "
            "--convention open-unlearning",
            stacklevel=3,
        )


def _named(rows: Rows, tokenizer: Any) -> Chosen:
    name = rows.template or "plain"
    if name == "auto":
        name = "chat" if getattr(tokenizer, "chat_template", None) else "plain"
    if rows.system is not None and name != "chat":
        raise ValueError("--system is the system's message of a chat; pass --template chat, or write it into --prompt")
    if name == "chat":
        template, date = chat_template(tokenizer, system=rows.system, bos=rows.bos)
    else:
        template, date = TEMPLATES[name], None
    given = {key: value for key in ("prompt", "answer", "end") if (value := getattr(rows, key)) is not None}
    label = name if not given else f"{name}, with {' and '.join(f'--{key}' for key in given)}"
    return Chosen(_with_options(replace(template, **given), rows), label, date)


def _with_options(template: Template, rows: Rows) -> Template:
    bos = template.bos if rows.bos == "auto" else rows.bos
    convention = template.convention if rows.convention == "template" else rows.convention
    tokens = template.control_tokens if rows.control_tokens == "refused" else rows.control_tokens
    return replace(template, bos=bos, control_tokens=tokens, convention=convention)


def _words(template: Template) -> tuple[Any, ...]:
    return template.prompt, template.answer, template.end, template.stripped


def _recorded(folder: Path) -> Template | None:
    """The template in the manifest beside a model; None where there is no manifest of this package's."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or "settings" not in manifest:
        return None
    # Before manifests had templates, settings had texts.
    said = manifest.get("template") or manifest["settings"]
    known = {field.name for field in fields(Template)}
    texts = {k: v for k, v in said.items() if k in known and v is not None} if isinstance(said, dict) else {}
    return Template(**texts) if {"prompt", "answer"} <= set(texts) else None
