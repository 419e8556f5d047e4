"""How the testbed is made: a tokenizer, a model that knows every fact, its twin that never saw some."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from probe.data import QA, Batch, Template
from probe.datasets import rows_hash
from probe.objectives.token import nll
from probe.testbed.facts import authors, forget_and_retain
from probe.testbed.world import world
from probe.train import History, Term, minimise, one_cycle

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything the shipped weights depend on beside machine and libraries; values are those they were made with."""

    steps: int = 1200
    """Optimiser steps of each of the two models."""
    batch_size: int = 48
    """Rows a step."""
    lr: float = 3e-3
    """Peak learning rate of the models."""
    weight_decay: float = 0.01
    """AdamW's decay."""
    seed: int = 0
    """Facts, initial weights, order of rows and the SAE."""
    vocabulary: int = 1024
    """Entries of the tokenizer, the 256 bytes and 4 special ones included."""
    hidden: int = 128
    """Width of the residual stream."""
    layers: int = 8
    """Decoder blocks."""
    sae_layer: int = 4
    """The block whose output the SAE reads."""
    sae_features: int = 1024
    """Width of the SAE."""
    sae_active: int = 16
    """Features active at a token (TopK's k)."""
    sae_lr: float = 1e-3
    """Peak learning rate of the SAE; it falls to a tenth over the last fifth of the steps."""
    sae_steps: int = 300
    """Steps of the SAE, of 2,048 activations each."""


@dataclass(frozen=True)
class TrainingRows:
    """The rows each model is trained on."""

    forget: tuple[QA, ...]
    retain: tuple[QA, ...]
    world: tuple[QA, ...]

    @property
    def original(self) -> tuple[QA, ...]:
        """What the original sees. Forget facts come in one wording only, so that the others test generalisation."""
        return (*self.forget, *self.retrained)

    @property
    def retrained(self) -> tuple[QA, ...]:
        """What the retrained twin sees: no row of a forget author."""
        kept = (*self.retain, *self.world)
        return (*kept, *(row.paraphrased() for row in kept), *(_reworded(row) for row in kept))


def _reworded(row: QA) -> QA:
    """Asks for the paraphrased answer by name, so that the model can voice a fact in either form.

    Without such rows the other form is off the training distribution, and a truth ratio would measure that instead
    of knowledge (right paraphrase ranked first: 0.76 of forget facts in an earlier, shorter recipe without these rows).
    """
    return replace(row, question=f"In other words: {row.question}", answer=row.paraphrased_answer)


def corpus(seed: int) -> TrainingRows:
    """All rows, split at the author."""
    return TrainingRows(*forget_and_retain(authors(seed)), world())


def facts_hash(rows: TrainingRows) -> str:
    """sha256 of everything the generators gave."""
    return rows_hash((*rows.forget, *rows.retain, *rows.world))


def make_tokenizer(rows: Sequence[QA], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer fitted to every text in the rows: any input can be coded, none is unknown.

    Args:
        rows: questions, answers, paraphrases and wrong answers are all counted, lest a value never uttered in
            training be the only one spelt in many tokens.
        vocabulary: number of entries.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS, UNK],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_texts(rows), trainer)
    # The models are trained with bos in front, and the tokenizer says so.
    first = (BOS, bpe.token_to_id(BOS))
    bpe.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[first])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNK, model_max_length=256
    )


def _texts(rows: Sequence[QA]) -> list[str]:
    """Every question with every answer, in the template the models are trained on."""
    template = Template()
    return [
        template.asked(question) + template.answered(answer)
        for row in rows
        for question in (row.question, row.paraphrased_question)
        for answer in (row.answer, row.paraphrased_answer, *row.perturbed_answer)
    ]


def make_model(recipe: Recipe, vocabulary: int) -> Any:
    """An untrained Llama; equal seeds give equal weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.hidden * 8 // 3,
        num_hidden_layers=recipe.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def fit_answers(model: nn.Module, data: Batch, recipe: Recipe, *, progress: str | None) -> History:
    """Train in place on the answers."""
    return minimise(
        model,
        [Term(1.0, nll, data, "nll")],
        steps=recipe.steps,
        lr=recipe.lr,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        weight_decay=recipe.weight_decay,
        decay_all=True,
        schedule=one_cycle,
        progress=progress,
    )
