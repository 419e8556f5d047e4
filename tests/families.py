"""One tiny model of every decoder family, built from its config; nothing is downloaded."""

from typing import Any

import pytest
import torch

_COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# What a family needs beyond the common settings.
_OWN: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8},
    "phi": {},
    "phi3": {},
    "gpt2": {},
    "gpt_neox": {},
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]], "num_layers": 3, "num_heads": 4},
    "falcon": {},
    "bloom": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "olmo2": {},
    "stablelm": {},
    "cohere": {},
    "mamba": {"state_size": 4, "conv_kernel": 3, "expand": 2, "time_step_rank": 4},
}
FAMILIES = tuple(_OWN)
# Families of unlike code; what holds for these is tried on the others by the slow tests.
UNLIKE = ("llama", "mixtral", "gemma2", "gpt2", "gptj", "bloom", "opt", "mamba")
EVERY = tuple(name if name in UNLIKE else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES)


def family(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A model of the family, in eval mode; all of its weights are fixed by the seed."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(name, **{**_COMMON, **_OWN[name], **changes})
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()
