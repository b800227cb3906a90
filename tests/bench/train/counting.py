"""What a step costs beside time: multiplications, and the bytes that it keeps for its backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

_SDPA = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_SDPA_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def kept_bytes(forward: Callable[[], Tensor], weights: Iterable[Tensor]) -> int:
    """Bytes of all that a forward keeps for its backward: each storage once, no weight."""
    known = {weight.untyped_storage().data_ptr() for weight in weights}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()  # alive until all is counted: no storage takes the place of another
    assert result.requires_grad
    return sum(kept.values())


def flops(step: Callable[[], object]) -> int:
    """Floating-point operations of all matrix products, convolutions and attention; a multiplication with its addition
    is two. Attention counts in full, without the half that a causal mask hides."""
    with FlopCounterMode(
        display=False, custom_mapping={_SDPA: _attention, _SDPA_BACKWARD: _attention_backward}
    ) as count:
        step()
    return int(count.get_total_flops())


def _attention(query: Any, key: Any, *args: Any, **kwargs: Any) -> int:
    """Query and key [n, heads, T, d]; torch's counter leaves the CPU's kernel out."""
    return 4 * math.prod(query) * key[2]


def _attention_backward(grad: Any, query: Any, key: Any, *args: Any, **kwargs: Any) -> int:
    """Four products, and query by key again."""
    return 10 * math.prod(query) * key[2]
