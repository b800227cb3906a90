"""Per group of parameters: how large its gradient is, and how far one step moves its weights.

From what each rank holds, without gathering anything under ZeRO-3; called only in steps that are logged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_grad,
    safe_get_local_fp32_param,
    safe_get_local_grad,
    safe_get_local_optimizer_state,
)
from torch import Tensor, nn

# Where DeepSpeed's optimizers below ZeRO 3 keep the weights of each group: one tensor, or a list of them.
_MASTERS = ("single_partition_of_fp32_groups", "fp32_groups_flat_partition", "fp32_groups_flat", "fp32_groups")
State = tuple[Tensor, Tensor, Tensor]  # weights and AdamW's two moments, of the same shape


def gradient_norms(engine: Any, groups: dict[str, list[nn.Parameter]]) -> dict[str, float]:
    """`grad_norm/GROUP` before clipping, between the last backward of a step and the step. Every rank calls it."""
    sums = torch.stack([_squares(_gradients(group), engine.device) for group in groups.values()])
    if engine.zero_optimization_stage() == 3:  # otherwise every rank has seen the whole
        dist.all_reduce(sums)
    return {f"grad_norm/{name}": math.sqrt(value) for name, value in zip(groups, sums.tolist(), strict=True)}


def update_ratios(engine: Any, groups: dict[str, list[nn.Parameter]], step: int) -> dict[str, float]:
    """`update_ratio/GROUP`: the norm of what optimizer step `step` (from 1) changed, divided by that of the weights.
    Every rank calls it, right after the step.

    The change follows from AdamW's moments m and v and its new weights w: with rate a, decay d and
    u = a m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps), the weights before were (w + u) / (1 - a d).
    """
    settings = {group["name"]: group for group in engine.optimizer.param_groups}
    sums = torch.zeros(2, len(groups), dtype=torch.float64, device=engine.device)
    for place, (name, group) in enumerate(groups.items()):
        for state in states(engine, place, group):
            sums[0, place] += _squares([_moved(state, settings[name], step)], engine.device)
            sums[1, place] += _squares([state[0]], engine.device)
    dist.all_reduce(sums)  # where every rank has the whole, both grow alike
    moved, weights = sums.tolist()
    return {
        f"update_ratio/{name}": math.sqrt(change / whole)
        for name, change, whole in zip(groups, moved, weights, strict=True)
        if whole and math.isfinite(change)
    }


def states(engine: Any, place: int, group: list[nn.Parameter]) -> Iterator[State]:
    """What this rank holds of the group that is the `place`-th: parameter by parameter, or all of them as one; nothing
    of what has never been learnt."""
    optimizer = engine.optimizer
    if hasattr(group[0], "ds_id"):
        for parameter in group:
            moments = [safe_get_local_optimizer_state(parameter, key) for key in ("exp_avg", "exp_avg_sq")]
            weights, mean, square = (
                _used(held, parameter) for held in (safe_get_local_fp32_param(parameter), *moments)
            )
            yield weights, mean, square
        return
    masters = next((getattr(optimizer, name)[place] for name in _MASTERS if hasattr(optimizer, name)), group)
    kept = optimizer.state if masters is group else optimizer.optimizer.state
    for weights in [masters] if isinstance(masters, Tensor) else masters:
        state = kept.get(weights, {})  # not by [], which would add one
        if "exp_avg" in state:
            yield weights.detach(), state["exp_avg"], state["exp_avg_sq"]


def _used(share: Tensor, parameter: Any) -> Tensor:
    """Without the end of the last rank's share under ZeRO 3, which is whatever was in that memory."""
    first = dist.get_rank() * parameter.ds_tensor.ds_numel
    return share.flatten()[: max(0, parameter.ds_numel - first)]


def _moved(state: State, group: dict[str, Any], step: int) -> Tensor:
    weights, mean, square = state
    beta_1, beta_2 = group["betas"]
    root = (square / (1 - beta_2**step)).sqrt_().add_(group["eps"])
    update = mean / (1 - beta_1**step) / root * group["lr"]
    before: Tensor = (weights + update) / (1 - group["lr"] * group["weight_decay"])
    return before - weights


def _gradients(group: list[nn.Parameter]) -> Iterator[Tensor]:
    """This rank's part under ZeRO 3, else the whole; nothing of a weight that no pass has used."""
    for parameter in group:
        gradient = safe_get_local_grad(parameter) if hasattr(parameter, "ds_id") else safe_get_full_grad(parameter)
        if gradient is not None:
            yield gradient


def _squares(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    parts = [tensor.detach().float().square().sum(dtype=torch.float64).to(device) for tensor in tensors]
    return torch.stack(parts).sum() if parts else torch.zeros((), dtype=torch.float64, device=device)
