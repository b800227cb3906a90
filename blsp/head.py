"""The LLM's last layer as the losses use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional


class Head(nn.Module):
    """One call per loss, however many rows there are.

    DeepSpeed gathers the weights of a partitioned layer when it is called, and all ranks must call alike. A loss goes
    through its rows in pieces, more pieces on one rank than on another: it gets a function that is no layer.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def _logits(self, hidden: Tensor) -> Tensor:
        if isinstance(self.layer, nn.Linear):
            return functional.linear(hidden, self.layer.weight, self.layer.bias)
        logits: Tensor = self.layer(hidden)
        return logits

    def forward(self, loss: Callable[..., Any], *rows: Any) -> Any:
        """`loss(head, *rows)`, where `head` turns hidden states [R, D] into logits [R, V]."""
        return loss(self._logits, *rows)
