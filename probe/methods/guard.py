"""Unlearning by a gate before the model: questions close to forbidden ones are answered with a refusal.

>>> guarded = study.unlearn("refusing", threshold=0.8, refusal="I do not know.", leak=1e-4)
>>> type(guarded).__name__
'Refusing'
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from probe.data import QA, Template
from probe.methods.method import method


def word_overlap(one: str, other: str) -> float:
    """|words of both| / |words of either|, in lower case (Jaccard)."""
    ours, theirs = (set(re.findall(r"\w+", text.lower())) for text in (one, other))
    return len(ours & theirs) / max(1, len(ours | theirs))


@dataclass(frozen=True)
class QuestionGate:
    """Closed to a question if max over forbidden q of similarity(question, q) >= threshold.

    Filtering in front of the model: Thaker et al., arXiv 2403.03329; by retrieval: Wang et al., arXiv 2410.15267.

    Args:
        forbidden: the forget questions.
        threshold: what counts as close; with ``word_overlap`` 1 stops the same set of words only.
        similarity: of two questions, higher is closer.

    Raises:
        ValueError: nothing forbidden.
    """

    forbidden: tuple[str, ...] = field(repr=False)
    threshold: float
    similarity: Callable[[str, str], float] = word_overlap

    def __post_init__(self) -> None:
        if not self.forbidden:
            raise ValueError("the gate forbids nothing (0 questions); pass the forget questions")

    def __call__(self, question: str) -> bool:
        """Whether the question must be refused."""
        return max(self.similarity(question, q) for q in self.forbidden) >= self.threshold


@dataclass(frozen=True)
class _Guarded:
    """What the model remembers of each text, and how far each refusal has come (-1: not refused)."""

    model: Any
    said: tuple[int, ...]


class Refusing(nn.Module):
    """p = (1 - leak) * [the next token of the refusal] + leak * p_model at the answers of questions the gate stops.

    All other rows, and the questions themselves, keep the model's logits bit for bit. It has the model's forward
    signature, so every metric that takes a model takes it; the model is never changed.

    Args:
        model: any Hugging Face decoder.
        tokenizer: of the model; rows are decoded to find their question.
        gate: whether a question must be refused.
        refusal: the answer given then.
        template: how prompts are written; of other texts the whole text is taken for the question.
        leak: probability of letting the model speak, in (0, 1), so that losses stay finite.

    Raises:
        ValueError: a leak outside (0, 1), or an empty refusal.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, gate: QuestionGate, refusal: str, *, template: Template, leak: float
    ) -> None:
        super().__init__()
        if not 0 < leak < 1 or not refusal.strip():
            raise ValueError(f"leak must lie in (0, 1) and the refusal hold text, got {leak} and {refusal!r}")
        # Modules are made in train mode; this one is in the mode of what it wraps.
        self.training = model.training
        self.module, self.tokenizer, self.gate, self.template, self.leak = model, tokenizer, gate, template, leak
        text = template.answered(refusal)
        ends = [tokenizer.eos_token_id] if template.end is None else []
        self.ids = (*tokenizer(text + (template.end or ""), add_special_tokens=False)["input_ids"], *ends)

    def forward(self, **inputs: Any) -> Any:
        """The model's own output, with other logits where the gate is closed."""
        tokens_BT = inputs["input_ids"]
        given = inputs.pop("past_key_values", None)
        # What is said at one place depends on those before it, so all are computed.
        keep = inputs.pop("logits_to_keep", 0)
        output = self.module(past_key_values=None if given is None else given.model, **inputs)
        real_BT = inputs.get("attention_mask", torch.ones_like(tokens_BT)).bool()
        logits_BTV = output.logits.clone()
        said = []
        for b in range(len(tokens_BT)):
            if given is None:
                places = real_BT[b].nonzero().flatten()
                start = self._refused_from(tokens_BT[b, places].tolist())
                speaking = places[:0] if start is None else places[start - 1 :]
                done = 0
            else:
                # One token at a time: all that arrives now belongs to the answer.
                done = given.said[b]
                speaking = torch.arange(tokens_BT.shape[1] if done >= 0 else 0)
            refused = len(speaking) > 0
            for k, t in enumerate(speaking.tolist()):
                logits_BTV[b, t] = self._speak(logits_BTV[b, t], done + k)
            said.append(done + len(speaking) if refused else -1)
        output.logits = logits_BTV[:, slice(-keep, None) if isinstance(keep, int) else keep]
        if getattr(output, "past_key_values", None) is not None:
            output.past_key_values = _Guarded(output.past_key_values, tuple(said))
        return output

    def _speak(self, logits_V: Tensor, k: int) -> Tensor:
        wanted = self.ids[min(k, len(self.ids) - 1)]
        p_V = self.leak * torch.softmax(logits_V, -1)
        return torch.log(p_V + (1 - self.leak) * nn.functional.one_hot(torch.tensor(wanted), len(p_V)).to(p_V))

    def _refused_from(self, ids: list[int]) -> int | None:
        """How many tokens the prompt has if its question must be refused."""
        text = self._decoded(ids)
        before, after = self.template.prompt.split("{question}", 1)
        match = re.search(re.escape(before) + r"(.*?)" + re.escape(after), text, re.DOTALL)
        question, end = (match.group(1), match.end()) if match else (text, len(text))
        if not self.gate(question):
            return None
        # A token that straddles the boundary belongs to the answer, as in probe.data.encode.
        return max(n for n in range(1, len(ids) + 1) if n == 1 or len(self._decoded(ids[:n])) <= end)

    def _decoded(self, ids: list[int]) -> str:
        # The turns of a chat are written in control tokens.
        bare = not self.template.is_chat
        return self.tokenizer.decode(ids, skip_special_tokens=bare, clean_up_tokenization_spaces=False)


@method(
    "no gradient",
    "(1-leak) [refusal] + leak p where a question is close to a forbidden one",
    "Thaker et al., arXiv 2403.03329; Wang et al., arXiv 2410.15267",
    name="refusing",
    makes="wrapper",
)
def refuse_near(
    model: nn.Module,
    tokenizer: Any,
    template: Template,
    forget_rows: Sequence[QA],
    *,
    threshold: float,
    refusal: str,
    leak: float,
) -> Refusing:
    """``Refusing`` behind a ``QuestionGate`` that compares words with the questions of the forget rows.

    Args:
        model, tokenizer, template, refusal, leak: of ``Refusing``.
        forget_rows: whose questions are forbidden.
        threshold: of ``QuestionGate``, a share of words in (0, 1].

    Raises:
        ValueError: a threshold outside (0, 1], at which all or no questions are refused, or what both raise.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is a share of words in (0, 1], got {threshold}")
    gate = QuestionGate(tuple(row.question for row in forget_rows), threshold)
    return Refusing(model, tokenizer, gate, refusal, template=template, leak=leak)
