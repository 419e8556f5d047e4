"""What gates remember of the rows under way, from one forward to the next."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from probe.axes import MaskBT
from probe.positions import Tokens


def _nothing() -> Tensor:
    return torch.zeros(0, 0, dtype=torch.bool)


@dataclass
class TokenHistory:
    """What fired, what counted, and what belongs to the prompt, at every token of the rows under way."""

    fired_BT: Tensor = field(default_factory=_nothing)
    counted_BT: Tensor = field(default_factory=_nothing)
    prompt_BT: Tensor = field(default_factory=_nothing)

    def extend(self, tokens: Tokens, fired_BT: MaskBT, counted_BT: MaskBT) -> None:
        """Add the tokens of one forward.

        Raises:
            ValueError: the cache holds tokens that were not seen here, or rows that cannot be told apart.
        """
        start = int(tokens.column_BT[0, 0])
        prompt_BT = (tokens.real_BT & (tokens.index_BT < tokens.prompt_B[:, None])).to(counted_BT.device)
        if start == 0:
            self.fired_BT, self.counted_BT, self.prompt_BT = fired_BT & counted_BT, counted_BT, prompt_BT
            return
        if tokens.from_B is None or start != self.fired_BT.shape[1]:
            raise ValueError(
                f"the cache holds {start} tokens, of which the gate has seen {self.fired_BT.shape[1]}, or its rows "
                "were changed; start from the prompt inside the block, without an assistant"
            )
        rows_B = tokens.from_B.to(self.fired_BT.device)
        self.fired_BT = torch.cat([self.fired_BT[rows_B], fired_BT & counted_BT], 1)
        self.counted_BT = torch.cat([self.counted_BT[rows_B], counted_BT], 1)
        self.prompt_BT = torch.cat([self.prompt_BT[rows_B], prompt_BT], 1)
