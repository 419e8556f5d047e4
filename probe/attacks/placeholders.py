"""Room in front of a prompt for vectors that are no text: tokens whose embeddings are replaced while the model runs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probe.data import Template
from probe.interventions.replacement import Replace
from probe.positions import At, Only
from probe.sites import Site
from probe.templates.coding import leading_ids

EMBEDDING = Site(0, "embedding")
VectorsPD = Float[Tensor, "P D"]


@dataclass(frozen=True)
class Placeholders:
    """A template with ``length`` placeholder tokens in front.

    Args:
        template: writes the placeholders.
        start: index of the first placeholder among a row's real tokens: 1 where the tokenizer has a bos token.
        length: how many there are.
    """

    template: Template
    start: int
    length: int

    def edits(self, vectors_PD: VectorsPD) -> Mapping[Site, list[At]]:
        """What ``edited`` puts in the placeholders' place."""
        if len(vectors_PD) != self.length:
            raise ValueError(f"{len(vectors_PD)} vectors for {self.length} placeholders")
        return {EMBEDDING: [At(Replace(v_D), Only((self.start + i,))) for i, v_D in enumerate(vectors_PD)]}


def with_placeholders(tokenizer: Any, template: Template, length: int) -> Placeholders:
    """Find a text that this tokenizer splits into exactly ``length`` tokens in front of the prompt.

    Raises:
        ValueError: no placeholder, or no text that works; the tokens meant to carry vectors must not merge with others.
    """
    if length < 1:
        raise ValueError(f"expected at least one placeholder, got {length}")
    bos = tokenizer.bos_token
    special = [t for t in (tokenizer.unk_token, tokenizer.eos_token, tokenizer.pad_token) if t is not None and t != bos]
    asked = template.asked("Why?")
    # Where no special token is to be had, a line break keeps a word from growing together with the prompt.
    for piece, end in (*((token, "") for token in special), (" x", "\n"), (" the", "\n"), (" a", "\n")):
        lead = piece * length + end
        ids = tokenizer(lead + asked, add_special_tokens=False)["input_ids"]
        rest = tokenizer(end + asked, add_special_tokens=False)["input_ids"]
        # Words of the prompt may not be cut anew, nor placeholders merge.
        if len(set(ids[:length])) == 1 and ids[length:] == rest:
            start = len(leading_ids(tokenizer, template.bos))
            return Placeholders(replace(template, prompt=lead + template.prompt), start, length)
    raise ValueError(
        f"no text found that {type(tokenizer).__name__} splits into {length} equal tokens in front of the prompt; "
        "give the tokenizer an unk token"
    )


def initial(embedding_VD: Tensor, length: int, seed: int) -> VectorsPD:
    """Embeddings of random tokens, in float32 at least, to start a search from."""
    ids_P = torch.randint(len(embedding_VD), (length,), generator=torch.Generator().manual_seed(seed))
    found_PD = embedding_VD.detach()[ids_P.to(embedding_VD.device)]
    return found_PD.to(torch.promote_types(found_PD.dtype, torch.float32)).clone()
