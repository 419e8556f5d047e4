"""How a question and its answer become one text."""

from dataclasses import dataclass, replace
from typing import Literal

Bos = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class Template:
    """How a question and its answer become one text, and that text tokens. The target starts where ``prompt`` ends.

    Braces other than {question} and {answer} are text, so that a prompt may hold JSON.

    Args:
        prompt: what is written before the answer, with {question} in it.
        answer: the answer, with {answer} in it.
        end: what is written after an answer, the end of a chat's turn say, which is a target too; generation stops at
            its first control token. None: the tokenizer's eos.
        bos: what stands in front of the text: ``"auto"``, what the tokenizer itself puts before a text; ``"always"``,
            its bos; ``"never"``, nothing, for a text that has its own.
        stripped: whether blanks at both ends of questions and answers are dropped, as many chat templates do.
        control_tokens: those (<|im_end|>, say) inside a question or an answer: ``"refused"``, or written as
            ``"text"``, in ordinary tokens.
        convention: ``"open-unlearning"`` has a chat's answer end in eos besides, and nothing attends to tokens that
            equal the pad token; see docs/migrating.md.

    Raises:
        ValueError: no {question} in the prompt or no {answer} in the answer, the other way round, or half of a
            surrogate pair.

    >>> chat = probe.Template(prompt="User: {question} Bot:", answer=" {answer}")
    >>> batch = probe.encode(s.tokenizer, s.split.forget_rows[:1], template=chat)
    >>> s.tokenizer.decode(batch.tokens_BT[0])
    '<s>User: In which town was Wendel Upwood born? Bot: The home town was Rivenna.</s>'
    """

    prompt: str = "Question: {question}\nAnswer:"
    answer: str = " {answer}"
    end: str | None = None
    bos: Bos = "auto"
    stripped: bool = False
    control_tokens: Literal["refused", "text"] = "refused"
    convention: Literal["template", "open-unlearning"] = "template"

    def __post_init__(self) -> None:
        if "{question}" not in self.prompt or "{answer}" not in self.answer:
            raise ValueError(
                "a template needs {question} in its prompt and {answer} in its answer; got prompt "
                f"{self.prompt[:60]!r} and answer {self.answer[:60]!r}"
            )
        if "{answer}" in self.prompt or "{question}" in self.answer:
            raise ValueError(
                "the prompt shows {answer}, or the answer {question}; a prompt ends where its answer begins"
            )
        for name, text in (("prompt", self.prompt), ("answer", self.answer), ("end", self.end or "")):
            half = next((c for c in text if "\ud800" <= c <= "\udfff"), None)
            if half:
                raise ValueError(f"the {name} holds {half!r}, half of a surrogate pair and no character; mend the text")

    def asked(self, question: str) -> str:
        """The text that ends where the answer begins."""
        return self.prompt.replace("{question}", self.cleaned(question))

    def answered(self, answer: str) -> str:
        """What is written after ``asked``, without the end."""
        return self.answer.replace("{answer}", self.cleaned(answer))

    @property
    def is_chat(self) -> bool:
        """Whether a question and its answer are turns with ends of their own."""
        return self.end is not None

    def written(self, question: str, answer: str) -> str:
        """Question and answer as an example that is shown before another question; plain inside of a chat's turn."""
        template = Template() if self.is_chat else self
        return template.asked(question) + template.answered(answer)

    def led(self, text: str) -> "Template":
        """The same with a text in front: of everything, or of the question where that is a chat's turn.

        Raises:
            ValueError: the text holds {question} or {answer}, which would be replaced.
        """
        for name in ("{question}", "{answer}"):
            if name in text:
                raise ValueError(f"the text before a question holds {name}, which a template replaces; leave it out")
        head, between, tail = self.prompt.partition("{question}") if self.is_chat else ("", "", self.prompt)
        return replace(self, prompt=f"{head}{text}{between}{tail}")

    def cleaned(self, text: str) -> str:
        """A question or an answer as the template shows it."""
        return text.strip() if self.stripped else text


TEMPLATES: dict[str, Template] = {
    "plain": Template(),
    "llama2": Template("[INST] {question} [/INST]", "{answer}"),
    # TOFU counts the words "Answer: " among phi's targets.
    "phi": Template("Question: {question}\n", "Answer: {answer}"),
    "llama3": Template(
        "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 10 Apr 2025"
        "\n\nYou are a helpful assistant.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{question}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "{answer}",
        "<|eot_id|>",
    ),
}
"""Published prompts by name: TOFU's for Llama 2 and phi-1.5, OpenUnlearning's for Llama 3.2, with its date."""
