"""What lies above a model's blocks, as a model of its own: from the last hidden state to logits."""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.axes import HiddenBTD
from probe.context import check_rows
from probe.data import Batch
from probe.objectives.logprobs import LogpNV, before_targets, logits_at
from probe.sites import Site, module_at, trunk, unwrapped

HiddenND = Float[Tensor, "N D"]

# Factors and divisors of logits, as configs of families name them.
_FACTORS = ("logit_scale", "lm_head_multiplier")
_DIVISORS = ("logits_scaling",)


@dataclass(frozen=True)
class Head:
    """logits = head(h): a frozen copy of the head, with whatever scale or cap the family puts on its logits.

    Args:
        shell: the model's copy, whose trunk is ``stand_in``.
        stand_in: a module without weights, which returns the given states.
        output: type of what the trunk returned.
    """

    shell: nn.Module = field(repr=False)
    stand_in: nn.Module = field(repr=False, compare=False)
    output: type = field(compare=False)

    def logits(self, hidden_ND: HiddenND) -> LogpNV:
        """Logits after these states, without gradient, in float32 at least."""
        held = hidden_ND.to(next(self.shell.parameters()).device)[None]

        def hold(*args: Any, **kwargs: Any) -> Any:
            return self.output(last_hidden_state=held)

        vars(self.stand_in)["forward"] = hold
        try:
            with torch.no_grad():
                tokens_1N = torch.zeros(held.shape[:2], dtype=torch.long, device=held.device)
                logits_NV = self.shell(input_ids=tokens_1N, use_cache=False).logits[0]
        finally:
            del vars(self.stand_in)["forward"]
        return logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()


def entering_head(model: nn.Module, batch: Batch) -> HiddenBTD:
    """What enters the head: the trunk's output, behind the final norm. The head does not run."""
    check_rows(model, batch)
    return trunk(model)(**batch.inputs, use_cache=False).last_hidden_state


def head_of(model: nn.Module, batch: Batch) -> Head:
    """A frozen copy of the model's head. Nothing else of the model is copied or kept.

    Args:
        model: a Hugging Face decoder, as it is now.
        batch: rows on which the copy is compared with the model.

    Raises:
        ValueError: the head by itself gives other logits than the model.
    """
    inner, below, stand_in = unwrapped(model), trunk(model), nn.Identity()
    with torch.no_grad():
        output = type(below(**batch.inputs, use_cache=False))
        # What deepcopy finds in its memory it does not copy.
        head = Head(copy.deepcopy(inner, {id(below): stand_in}).requires_grad_(False), stand_in, output)
        positions_BT = before_targets(batch)
        expected_NV = logits_at(model, batch, positions_BT)
        found_NV = head.logits(entering_head(model, batch)[positions_BT])
    if not torch.allclose(found_NV, expected_NV, rtol=1e-3, atol=1e-3 * expected_NV.abs().max().item()):
        raise ValueError(
            f"{type(inner).__name__} has a head that gives other logits by itself; make the OriginalAnswers with "
            "full=True, or pass the model"
        )
    return head


def through_head(model: nn.Module, hidden_ND: HiddenND) -> Float[Tensor, "N V"]:
    """head(norm(h)) with what families put around it: OPT's projection, factors, divisors and soft caps of configs.

    Raises:
        ValueError: the family has no final norm.
    """
    inner: Any = unwrapped(model)
    config, stem = inner.config.get_text_config(), trunk(model)
    # As one row: edits of the norm act on three axes.
    normed_ND = module_at(model, Site(0, "norm"))(hidden_ND[None])[0]
    project = stem._modules.get("project_out")
    logits_NV = inner.get_output_embeddings()(normed_ND if project is None else project(normed_ND))
    for name in _FACTORS:
        factor = getattr(config, name, None)
        logits_NV = logits_NV * factor if factor else logits_NV
    for name in _DIVISORS:
        divisor = getattr(config, name, None)
        logits_NV = logits_NV / divisor if divisor else logits_NV
    cap = getattr(config, "final_logit_softcapping", None)
    return torch.tanh(logits_NV / cap) * cap if cap else logits_NV
