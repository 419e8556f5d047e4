"""What the calibrated comparison asks of a model: metrics of both sides, and of the forget side under four attacks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from analyses.subjects import Subject
from probe.attacks.facts import divided
from probe.attacks.prompts import JAILBREAKS
from probe.attacks.quantisation import rounded_weights
from probe.attacks.restoring import weights_restored
from probe.data import QA, Batch, Template, encode
from probe.methods.supplies import retention
from probe.metrics.choices import ChoiceResult, guessing, side_by_side
from probe.metrics.generation import generate
from probe.metrics.judges import rouge_entailer, tfidf_embedder
from probe.metrics.meaning import cosine_similarity, entailed
from probe.metrics.reliability import noised
from probe.metrics.suite import SuiteResult, answer_suite
from probe.metrics.text import rouge_l_recall, token_entropy
from probe.objectives.token import nll
from probe.templates.coding import leading_ids
from probe.train import Term, minimise

# Options of a choice question; the right one and the first wrong ones.
OPTIONS = 4


@dataclass(frozen=True)
class Asking:
    """Sizes of measuring and of attacks, as they suit a model.

    Args:
        generated: rows of each side whose answers are generated.
        new_tokens: longest generation; of longer answers the beginning is what a generation is compared with.
        open_share: ROUGE-L recall from which an open answer counts as right (and as entailed).
        steps, lr, batch_size: of relearning, on forget rows that are not measured.
        noise: chance of a prompt token to be replaced.
        bits: of quantised weights.
    """

    generated: int
    new_tokens: int
    open_share: float
    steps: int
    lr: float
    batch_size: int
    noise: float = 0.05
    bits: int = 4


# On the testbed every word of an answer but one or two is its form, so that an answer is right only as a whole.
ASKING: dict[str, Asking] = {
    "testbed": Asking(20, 24, 1.0, 6, 1e-4, 16),
    "stories": Asking(16, 60, 0.6, 6, 3e-4, 8),
}


@dataclass(frozen=True, eq=False)
class Measuring:
    """What is asked of a model.

    Args:
        chosen: the subject.
        asking: sizes.
        shown, held: forget rows, apart: some that an attacker trains on, some that are measured.
        choosing: retain rows that calibration looks at.
        reported: other retain rows.
    """

    chosen: Subject
    asking: Asking
    shown: tuple[QA, ...]
    held: tuple[QA, ...]
    choosing: Batch
    reported: tuple[QA, ...]

    @property
    def note(self) -> str:
        """How it is measured, in one line."""
        asking = self.asking
        other = (
            "" if self.chosen.split.retain_rows[0].perturbed_answer else ", on retain rows answers to other questions"
        )
        return (
            f"{len(self.held)} forget and {len(self.reported)} retain rows; {asking.generated} of each answered in at "
            f"most {asking.new_tokens} tokens, right from a ROUGE-L recall of {asking.open_share:g}; choice among "
            f"{OPTIONS}{other}. Attacks: {asking.steps} steps of relearning (learning rate {asking.lr:g}) on "
            f"{len(self.shown)} other forget rows about the same authors; the prefix {JAILBREAKS[0].opening!r}; "
            f"{asking.noise:.0%} of prompt tokens replaced; block weights rounded to {asking.bits} bits."
        )

    def side(self, model: nn.Module, side: str) -> dict[str, float]:
        """All metrics of one side, without an attack, and the choice questions beside the open ones."""
        rows = self.held if side == "forget" else self.reported
        found, suite, right = self._asked(model, rows, self.chosen.split.template, side)
        choices = choices_of(suite)
        few = replace(
            choices, **{k: getattr(choices, k)[: len(right)] for k in ("logp", "picked_N", "answer_N", "guess_N")}
        )
        both = side_by_side(few, right)
        signs = guessing(choices, near_uniform=0.95, one_sided=1.0)
        return found | {
            "at_chance": float(signs.at_chance),
            "near_uniform": float(signs.uniform),
            "option_entropy": choices.entropy,
            "only_choice": both.only_choice,
            "only_open": both.only_open,
        }

    def attacked(self, model: nn.Module) -> dict[str, float]:
        """The metrics on forget rows under each attack, as ``attack/metric``."""
        asking, template = self.asking, self.chosen.split.template
        found = {}
        with weights_restored(model):
            shown = encode(self.chosen.tokenizer, self.shown, template=template, max_length=self._length)
            minimise(
                model, [Term(1.0, nll, shown)], steps=asking.steps, lr=asking.lr, batch_size=asking.batch_size, seed=0
            )
            found["relearning"] = self._asked(model, self.held, template, "forget")[0]
        prompt = JAILBREAKS[0]
        found["jailbreak"] = self._asked(model, prompt.rows(self.held), prompt.template(template), "forget")[0]
        rows = noised_rows(self.chosen.tokenizer, self.held, template, rate=asking.noise, seed=0)
        found["token noise"] = self._asked(model, rows, Template("{question}", template.answer), "forget")[0]
        with rounded_weights(model, bits=asking.bits):
            found["quantisation"] = self._asked(model, self.held, template, "forget")[0]
        return {f"{attack}/{k}": v for attack, values in found.items() for k, v in values.items()}

    def strength(self, model: nn.Module, batch: Batch) -> float:
        """Mean extraction strength, floor 0."""
        return retention(batch)(model)

    @property
    def _length(self) -> int:
        # Noise and prefixes lengthen texts.
        return 2 * self.chosen.split.max_length

    def _asked(
        self, model: nn.Module, rows: Sequence[QA], template: Template, side: str
    ) -> tuple[dict[str, float], SuiteResult, list[bool]]:
        tokenizer, asking = self.chosen.tokenizer, self.asking
        suite = answer_suite(model, tokenizer, rows, template, max_length=self._length, with_generation=False)
        few = rows[: asking.generated]
        prompts = [template.asked(row.question) for row in few]
        texts = generate(model, tokenizer, prompts, max_new_tokens=asking.new_tokens)
        answers = [beginning(tokenizer, row.answer, asking.new_tokens) for row in few]
        entailer = rouge_entailer(share=asking.open_share)
        right_N = entailed(texts, answers, entailer, premise="output").value_N
        means = suite.means()
        found = {
            "probability": means["probability"],
            "log_perplexity": float(suite.loss_N.mean()),
            "extraction_strength": means["extraction_strength"],
            "extraction_strength_floor": float(suite.extraction("1/L").mean()),
            "exact_memorisation": means["exact_memorisation"],
            "choice_accuracy": choices_of(suite).accuracy,
            "rouge": float(np.mean([rouge_l_recall(a, t) for a, t in zip(answers, texts, strict=True)])),
            "token_entropy": float(np.mean([token_entropy(_ids(tokenizer, text)) for text in texts])),
            "cosine_similarity": cosine_similarity(texts, answers, tfidf_embedder()).mean,
            "entailment": entailed(texts, answers, entailer, premise="output" if side == "forget" else "answer").mean,
            "open_right": float(right_N.mean()),
        }
        if side == "forget" or self.chosen.split.retain_rows[0].perturbed_answer:
            found["truth_ratio"] = means[f"truth_ratio_{side}"]
        if all(row.paraphrased_question for row in rows):
            found["paraphrased_probability"] = means["paraphrased_probability"]
            found["perturbed_strength"] = float(suite.extraction("0", perturbed=True).mean())
            found["perturbed_strength_floor"] = float(suite.extraction("1/L", perturbed=True).mean())
        return found, suite, [bool(x) for x in right_N]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def beginning(tokenizer: Any, text: str, n: int) -> str:
    """The text of the first ``n`` tokens."""
    return str(tokenizer.decode(_ids(tokenizer, text)[:n], skip_special_tokens=True)).strip()


def choices_of(suite: SuiteResult) -> ChoiceResult:
    """The right and the first wrong answers as options, by mean log-probability per token, eos included.

    The right option's place changes from row to row, so that taking the first of equals gains nothing.
    """
    if suite.right_loss_N is None or suite.wrong_loss_NK is None:
        raise ValueError("these rows have no wrong answers")
    n = len(suite)
    place_N = np.arange(n) % OPTIONS
    logp = []
    for i, (right, wrong_K) in enumerate(zip(suite.right_loss_N, suite.wrong_loss_NK, strict=True)):
        logp.append(np.insert(-wrong_K[: OPTIONS - 1], place_N[i], -right))
    picked_N = np.array([int(p_K.argmax()) for p_K in logp])
    return ChoiceResult("text mean", tuple(logp), picked_N, place_N, np.full(n, 1 / OPTIONS))


def noised_rows(tokenizer: Any, rows: Sequence[QA], template: Template, *, rate: float, seed: int) -> tuple[QA, ...]:
    """The rows with whole noisy prompts as their questions, the same noise for every answer to a question."""

    def prompts(questions: Sequence[str]) -> list[str]:
        asked = [QA(question, "-") for question in questions]
        batch = encode(tokenizer, asked, template=template, max_length=10**6)
        noisy = noised(batch, rate=rate, vocabulary=len(tokenizer), seed=seed)
        starts = len(leading_ids(tokenizer, template.bos))
        return [
            tokenizer.decode(ids[starts:n], skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for ids, n in zip(noisy.tokens_BT, batch.prompt_B.tolist(), strict=True)
        ]

    plain = prompts([row.question for row in rows])
    other = prompts([row.paraphrased().question for row in rows])
    return tuple(
        replace(row, question=q, paraphrased_question=p if row.paraphrased_question else "")
        for row, q, p in zip(rows, plain, other, strict=True)
    )


def with_options(rows: Sequence[QA]) -> tuple[QA, ...]:
    """Rows without wrong answers get those of the rows behind them: answers to other questions, easily told apart."""
    n = len(rows)
    return tuple(
        row
        if row.perturbed_answer
        else replace(row, perturbed_answer=tuple(rows[(i + k) % n].answer for k in range(1, OPTIONS)))
        for i, row in enumerate(rows)
    )


def measuring(chosen: Subject) -> Measuring:
    """Divide a subject's rows."""
    split, (n_forget, n_retain) = chosen.split, chosen.rows
    share = 1 - n_forget / len(split.forget_rows)
    facts = divided(chosen.tokenizer, split.forget_rows, share=share, by="row", seed=0, template=split.template)
    # By chance, so that both hold rows of every author and kind.
    order = torch.randperm(len(split.retain_rows), generator=torch.Generator().manual_seed(0)).tolist()
    choosing = split.retain.select(order[: 2 * n_retain])
    reported = with_options([split.retain_rows[i] for i in order[2 * n_retain : 3 * n_retain]])
    asking = ASKING["stories" if chosen.name == "stories" else "testbed"]
    return Measuring(chosen, asking, facts.shown, facts.held, choosing, reported)
