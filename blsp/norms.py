"""Per group of parameters: how large its gradient is, and how far one step moves its weights.

From what each rank holds, without gathering anything under ZeRO-3; called only in steps that are logged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_grad,
    safe_get_full_optimizer_state,
    safe_get_local_fp32_param,
    safe_get_local_grad,
    safe_get_local_optimizer_state,
)
from torch import Tensor, nn


def gradient_norms(engine: Any, groups: dict[str, list[nn.Parameter]]) -> dict[str, float]:
    """`grad_norm/GROUP` before clipping, between the last backward of a step and the step. Every rank calls it."""
    sums = {name: [_square(_gradient(parameter)) for parameter in group] for name, group in groups.items()}
    return {f"grad_norm/{name}": math.sqrt(value) for name, value in _over_ranks(engine, sums).items()}


def whole_norm(engine: Any, norms: dict[str, float]) -> float:
    """Of all groups' gradients together, after the step: DeepSpeed's own figure, or without ZeRO, where it has none,
    that of `gradient_norms`."""
    norm = engine.get_global_grad_norm()
    return float(norm) if norm else math.sqrt(sum(value * value for value in norms.values()))


def update_ratios(engine: Any, groups: dict[str, list[nn.Parameter]], step: int) -> dict[str, float]:
    """`update_ratio/GROUP`: the norm of what optimizer step `step` (from 1) changed, divided by that of the weights.
    Every rank calls it, right after the step.

    The change follows from AdamW's moments m and v and its new weights w: with rate a, decay d and
    u = a m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps), the weights before were (w + u) / (1 - a d).
    """
    # DeepSpeed (ZeRO 1 and 2) ties a parameter to its moments when a checkpoint is written, and that may come later.
    getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", lambda: None)()
    settings = {group["name"]: group for group in engine.optimizer.param_groups}
    moved, weights = {}, {}
    for name, group in groups.items():
        pairs = [_moved(engine, parameter, settings[name], step) for parameter in group]
        moved[name], weights[name] = [_square(pair[0]) for pair in pairs], [_square(pair[1]) for pair in pairs]
    moved_sums, sums = _over_ranks(engine, moved), _over_ranks(engine, weights)
    return {f"update_ratio/{name}": math.sqrt(moved_sums[name] / max(sums[name], 1e-30)) for name in groups}


def _moved(engine: Any, parameter: nn.Parameter, group: dict[str, Any], step: int) -> tuple[Tensor, Tensor]:
    """What the step changed, and the weights after it: this rank's part, or the whole without ZeRO-3."""
    weights, mean, square = (_state(engine, parameter, key) for key in (None, "exp_avg", "exp_avg_sq"))
    beta_1, beta_2 = group["betas"]
    root = (square / (1 - beta_2**step)).sqrt_().add_(group["eps"])
    update = mean / (1 - beta_1**step) / root * group["lr"]
    before = (weights + update) / (1 - group["lr"] * group["weight_decay"])
    return before - weights, weights


def _gradient(parameter: nn.Parameter) -> Tensor:
    gradient = safe_get_local_grad(parameter) if hasattr(parameter, "ds_id") else safe_get_full_grad(parameter)
    assert isinstance(gradient, Tensor)
    return gradient


def _state(engine: Any, parameter: nn.Parameter, key: str | None) -> Tensor:
    """The optimizer's weights, or with a `key` one of its moments, float32."""
    if hasattr(parameter, "ds_id"):
        state = safe_get_local_optimizer_state(parameter, key) if key else safe_get_local_fp32_param(parameter)
    else:
        state = safe_get_full_optimizer_state(parameter, key) if key else safe_get_full_fp32_param(parameter)
    if state is None:  # ZeRO 0 in float32: torch's own optimizer
        state = engine.optimizer.state[parameter][key] if key else parameter.detach()
    assert isinstance(state, Tensor)
    return state


def _square(tensor: Tensor) -> Tensor:
    return tensor.detach().float().square().sum(dtype=torch.float64)


def _over_ranks(engine: Any, sums: dict[str, list[Tensor]]) -> dict[str, float]:
    totals = torch.stack([torch.stack(parts).sum() for parts in sums.values()])
    if engine.zero_optimization_stage() == 3:  # otherwise every rank has seen the whole
        dist.all_reduce(totals)
    return dict(zip(sums, _finite(totals), strict=True))


def _finite(totals: Tensor) -> Iterator[float]:
    yield from (value if math.isfinite(value) else 0.0 for value in totals.tolist())
