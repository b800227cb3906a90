"""Whether what a checkpoint brought can be learnt on from: one NaN in a moment is everywhere some steps later."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from blsp.norms import states

_PARTS = ("weights", "exp_avg", "exp_avg_sq")


def not_finite(engine: Any, groups: dict[str, list[nn.Parameter]]) -> str:
    """What is not finite of the weights and moments that `engine` has, on any rank, in words; "" when all is. Every
    rank calls it, and gets the same."""
    found: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(found, next(_not_finite(engine, groups), ""))
    return next(filter(None, found), "")


def _not_finite(engine: Any, groups: dict[str, list[nn.Parameter]]) -> Iterator[str]:
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    for place, (group, parameters) in enumerate(groups.items()):
        held = list(states(engine, place, parameters))
        by_parameter = len(held) == len(parameters)  # or all of them as one
        for index, state in enumerate(held):
            for part, tensor in zip(_PARTS, state, strict=True):
                if not torch.isfinite(tensor).all():
                    name = names[parameters[index]].removeprefix("parts.") if by_parameter else group
                    yield f"{part} of {name}: not finite"
