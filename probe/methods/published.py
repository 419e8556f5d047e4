"""Settings that someone published, as values that carry their source."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

Argument = float | int | str | tuple[int, ...] | tuple[float, ...]


@dataclass(frozen=True)
class Published:
    """Keyword arguments of one method as printed in a paper or its code.

    Numbers and words, as the shell takes them. They belong to the model and data named in ``source``; on another model
    they are a starting point.

    Args:
        source: paper or code, model and data.
        arguments: hand them to the method as ``**setting.arguments``.
    """

    source: str
    arguments: Mapping[str, Argument]

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", MappingProxyType(dict(self.arguments)))


# What many TOFU runs have in common: both terms weigh the same.
ONE_TO_ONE: Mapping[str, Argument] = MappingProxyType(
    {"forget_weight": 1.0, "retain_weight": 1.0, "lr": 1e-5, "batch_size": 32}
)
# What OpenUnlearning's TOFU experiments train with besides a method's own numbers: one of ten epochs is warm-up.
OPEN_UNLEARNING: Mapping[str, Argument] = MappingProxyType(
    {"weight_decay": 0.01, "schedule": "linear", "warmup": 0.1, "replacement": True}
)
