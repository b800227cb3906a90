"""What one rank does for all of them: its result, or its error, is everybody's."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def together(action: Callable[[], T]) -> T:
    """Call `action` on rank 0 alone. Its result, which must be small, or whatever it raises is everybody's: none waits
    in vain."""
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = action()
        except Exception as error:
            outcome[1] = _sent(error)
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def _sent(error: Exception) -> Exception:
    """The error, or one of the same words where it cannot travel: torch's and safetensors' own may not."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
