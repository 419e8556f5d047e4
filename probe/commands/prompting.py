"""How rows become texts: plain values, importable without torch so that ``probe --help`` stays quick."""

from dataclasses import dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Prompting:
    """How a question and its answer become one text, and that text tokens; every command that reads rows is told so."""

    template: Literal["auto", "plain", "chat", "llama2", "llama3", "phi"] | None = None
    """Question and answer as a text: plain (Question: ... Answer: ...), chat (the tokenizer's own chat template), auto
    (chat where there is one, else plain), or a published prompt. By default what the manifest of an unlearned model
    says, else plain."""
    system: str | None = None
    """The system's message of a chat; by default what the chat template itself writes, if anything."""
    prompt: str | None = None
    """Text before the answer with {question} in it; takes precedence over --template. Other braces are text."""
    answer: str | None = None
    """The answer's text with {answer} in it; takes precedence over --template."""
    end: str | None = None
    """What ends an answer, and is a target too; by default eos, or what the chat template writes."""
    bos: Literal["auto", "always", "never"] = "auto"
    """What stands before a text: what the tokenizer itself puts there, always its bos, or nothing."""
    control_tokens: Literal["refused", "text"] = "refused"
    """Control tokens (<|im_end|>, say) inside of rows: refused, or written in ordinary tokens."""
    convention: Literal["template", "open-unlearning"] = "template"
    """Whose tokens a chat has: the template's own, or OpenUnlearning's (eos besides, pad tokens never attended to)."""

    @property
    def chooses(self) -> bool:
        """Whether a template was asked for, so that no manifest decides."""
        return any(value is not None for value in (self.template, self.system, self.prompt, self.answer, self.end))

    def check_prompting(self, *, own: bool) -> None:
        """Refuse a template that nothing would be written with.

        Args:
            own: whether a model of the user's is looked at, and not the testbed.

        Raises:
            ValueError: a template for the testbed, whose rows have their own.
        """
        if not own and self.prompting() != Prompting().prompting():
            flags = [name for name, value in self.prompting().items() if value != getattr(Prompting(), name)]
            raise ValueError(f"--{flags[0]} is for models of your own; the testbed is asked as it was trained")

    def prompting(self) -> dict[str, Any]:
        """These fields alone, for a command that another one calls."""
        return {field.name: getattr(self, field.name) for field in fields(Prompting)}
