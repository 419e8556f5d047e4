"""Small models built from configs; no weights are downloaded."""

import gc
import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Models here are tiny: a second thread costs more in waiting than it brings.
torch.set_num_threads(1)

# Torch and transformers are a million objects that never go: looking through them costs a tenth of all tests' time.
gc.set_threshold(100_000, 20, 100)


def pytest_collection_finish():
    gc.collect()
    gc.freeze()


# On a busy machine any example may take long.
settings.register_profile("probe", deadline=None)
settings.load_profile("probe")


def shared_folder() -> Path:
    return Path(os.environ.get("PROBE_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = shared_folder()
    if not folder.is_dir():
        pytest.skip(f"needs the shared data folder, not found at {folder} (set PROBE_SHARED)")
    return folder


def tiny_llama(seed: int = 0, *, n_layers: int = 3, dtype: torch.dtype = torch.float32, **changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": 48,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        **changes,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**settings)).to(dtype).eval()


def tiny_gpt2(seed: int = 0, *, n_layers: int = 3, dtype: torch.dtype = torch.float64, spread: float = 1.0):
    """GPT-2 computes wholly in its own dtype, so float64 checks are tight; Llama's norms run in float32.

    A ``spread`` above 1 makes weights larger than at initialisation: probabilities far from 1/V, and states that differ
    from another seed's.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=48,
        n_positions=64,
        n_embd=16,
        n_layer=n_layers,
        n_head=2,
        bos_token_id=1,
        eos_token_id=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = GPT2LMHeadModel(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(spread)
    return model


def random_batch(seed: int = 0, *, rows: int = 4, length: int = 10, vocabulary: int = 48):
    """Right-padded rows of different lengths; the second half of each row is its target."""
    from probe.data import Batch

    generator = torch.Generator().manual_seed(seed)
    tokens_BT = torch.randint(3, vocabulary, (rows, length), generator=generator)
    length_B = torch.randint(length // 2 + 2, length + 1, (rows,), generator=generator)
    length_B[0] = length
    position_T = torch.arange(length)
    attention_BT = position_T[None] < length_B[:, None]
    target_BT = attention_BT & (position_T[None] >= length // 2)
    tokens_BT = tokens_BT.masked_fill(~attention_BT, 0)
    return Batch(tokens_BT, target_BT, attention_BT, torch.arange(rows), torch.full((rows,), length // 2))


@pytest.fixture(scope="session")
def bed():
    from probe.testbed import load

    return load()
