"""Settings that someone published, as values that carry their source."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Published:
    """Keyword arguments of one method as printed in a paper or its code.

    Numbers and words, as the shell takes them. They belong to the model and data named in ``source``; on another model they are a starting point.

    Args:
        source: paper or code, model and data.
        arguments: hand them to the method as ``**setting.arguments``.
    """

    source: str
    arguments: Mapping[str, float | int | str | tuple[int, ...] | tuple[float, ...]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", MappingProxyType(dict(self.arguments)))
