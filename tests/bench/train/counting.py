"""What a step costs beside time: multiplications, and the bytes that it keeps for its backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

_SDPA = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_SDPA_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Cost:
    """Of one step. `kept_bytes` are those of all that its forward keeps for its backward: each storage once, no weight.
    `flops` are the operations of all matrix products, convolutions and attention, both ways: a multiplication
    with its addition is two, and attention counts in full, without the half that a causal mask hides."""

    loss: float
    kept_bytes: int
    flops: int


@dataclass(frozen=True, eq=False)
class _Kept:
    """What autograd holds in place of a saved tensor."""

    tensor: Tensor


def cost(forward: Callable[[], Tensor], weights: Iterable[Tensor]) -> Cost:
    """What a forward and the backward from its result cost."""
    known = {weight.untyped_storage().data_ptr() for weight in weights}
    alive: WeakSet[_Kept] = WeakSet()  # what a loss kept and has let go of, once it had its gradient, is not counted

    def keep(tensor: Tensor) -> _Kept:
        kept = _Kept(tensor)
        alive.add(kept)
        return kept

    kernels = {_SDPA: _attention, _SDPA_BACKWARD: _attention_backward}
    with FlopCounterMode(display=False, custom_mapping=kernels) as counter:
        with saved_tensors_hooks(keep, lambda kept: kept.tensor):
            loss = forward()
        storages = {
            storage.data_ptr(): storage.nbytes() for storage in (kept.tensor.untyped_storage() for kept in alive)
        }
        loss.backward()
    kept_bytes = sum(size for place, size in storages.items() if place not in known)
    return Cost(float(loss.detach()), kept_bytes, int(counter.get_total_flops()))


def _attention(query: Any, key: Any, *args: Any, **kwargs: Any) -> int:
    """Query and key [n, heads, T, d]; torch's counter leaves the CPU's kernel out."""
    return 4 * math.prod(query) * key[2]


def _attention_backward(grad: Any, query: Any, key: Any, *args: Any, **kwargs: Any) -> int:
    """Four products, and query by key again."""
    return 10 * math.prod(query) * key[2]
