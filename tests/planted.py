"""A concept written by hand into a random Llama: what carries it is known exactly, and nothing is trained."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probe.data import Batch
from probe.dictionaries.made import oracle_dictionary

WIDTH, VOCABULARY = 64, 230
TRIGGERS, ANSWERS = tuple(range(10, 18)), tuple(range(20, 28))
BOS = 1


@dataclass(frozen=True, eq=False)
class Concept:
    """A Llama whose residual stream carries one unit direction from eight trigger tokens to eight answer tokens.

    No other embedding, no part of any block and no other row of the head has a component along it.

    Args:
        model: random, 4 layers, width 64.
        direction_D: v.
        forget: rows with one trigger each; the target is the answer right after it.
        retain: rows without triggers; every token is a target.
        oracle: v and an orthonormal complement, each in both signs; feature 0 is v.
    """

    model: Any
    direction_D: Tensor
    forget: Batch
    retain: Batch
    oracle: Any

    def answer_probability(self, batch: Batch) -> Tensor:
        """P(any answer) after each trigger of the batch; after every token where it has none."""
        with torch.no_grad():
            p_BTV = self.model(**batch.inputs).logits.softmax(-1)
        said_BT = p_BTV[..., list(ANSWERS)].sum(-1)
        trigger_BT = torch.isin(batch.tokens_BT, torch.tensor(TRIGGERS))
        return said_BT[trigger_BT] if trigger_BT.any() else said_BT[batch.attention_BT]


def concept(seed: int = 0) -> Concept:
    """Build it; the seed fixes weights, direction and rows."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        initializer_range=0.037,
        bos_token_id=BOS,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    v_D = torch.randn(WIDTH)
    v_D /= v_D.norm()
    inner = model.model
    for weight_VD in (inner.embed_tokens.weight, model.lm_head.weight):
        weight_VD -= (weight_VD @ v_D)[:, None] * v_D
    for layer in inner.layers:
        for weight_DE in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            weight_DE -= v_D[:, None] * (v_D @ weight_DE)
    inner.embed_tokens.weight[list(TRIGGERS)] += 1.5 * v_D
    model.lm_head.weight[list(ANSWERS)] += v_D
    oracle = oracle_dictionary(v_D[None], complete=True)
    return Concept(model, v_D, rows_of(seed, 32, triggered=True), rows_of(seed + 1, 32, triggered=False), oracle)


def rows_of(seed: int, n: int, *, triggered: bool, length: int = 12) -> Batch:
    """Random rows; with ``triggered`` each holds one trigger and, right after it, an answer, the only target."""
    generator = torch.Generator().manual_seed(seed)
    tokens_BT = torch.randint(40, VOCABULARY, (n, length), generator=generator)
    tokens_BT[:, 0] = BOS
    real_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
    target_BT = real_BT.clone()
    if triggered:
        rows = torch.arange(n)
        at_B = torch.randint(2, length - 1, (n,), generator=generator)
        tokens_BT[rows, at_B] = torch.tensor(TRIGGERS)[rows % len(TRIGGERS)]
        tokens_BT[rows, at_B + 1] = torch.tensor(ANSWERS)[torch.randint(0, len(ANSWERS), (n,), generator=generator)]
        target_BT = torch.zeros_like(real_BT)
        target_BT[rows, at_B + 1] = True
    return Batch(tokens_BT, target_BT, real_BT, torch.arange(n), torch.ones(n, dtype=torch.long))
