"""From a recipe to DeepSpeed's configuration, and what DeepSpeed needs at the start. Only here are its keys known."""

from __future__ import annotations

import math
import os
import warnings
from typing import Any

from blsp.recipe import TrainRecipe


def prepare_environment() -> None:
    """Settings that DeepSpeed and torch read once."""
    # DeepSpeed 0.19 calls collectives by names that torch 2.13 is about to drop.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    # Loading a checkpoint must never run code that somebody put into it.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    import torch  # what follows from a recipe needs none

    if not torch.cuda.is_available():
        import deepspeed.ops

        # DeepSpeed would compile this operator on first use; training collectives go through gloo regardless.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def accumulation_steps(micro_batches: int, world_size: int) -> int:
    """Micro-batches that each rank runs in a step; the last may be a filler of weight 0."""
    return math.ceil(micro_batches / world_size)


def config(recipe: TrainRecipe, world_size: int, *, partitioned: bool = False) -> dict[str, Any]:
    """DeepSpeed's JSON for `world_size` ranks, with the recipe's own keys merged in. `partitioned`: frozen parts are
    cut too.

    A micro-batch is one call of the engine, whatever the number of clips in it, so DeepSpeed's batch sizes count calls.
    """
    accumulation = accumulation_steps(recipe.data.micro_batches, world_size)
    generated: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": accumulation * world_size,
        "gradient_clipping": recipe.optim.clip_norm,
        "bf16": {"enabled": recipe.model.dtype == "bfloat16"},
        "zero_optimization": _zero_optimization(recipe.engine.zero_stage, partitioned),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "wall_clock_breakdown": False,
        # The plan deals the micro-batches; DeepSpeed must not print a line every ten steps beside ours.
        "steps_per_print": 10**9,
    }
    if recipe.model.dtype == "bfloat16" and recipe.engine.zero_stage >= 2:
        # A sum in bfloat16 is rounded again for each of a step's many micro-batches. Below stage 2 DeepSpeed has either
        # no such sum or another optimizer for it.
        generated["data_types"] = {"grad_accum_dtype": "fp32"}
    return merge(generated, recipe.engine.deepspeed)


def _zero_optimization(stage: int, partitioned: bool) -> dict[str, Any]:
    """Sizes in numbers of elements, for Whisper-large-v2 and an LLM of 7 B; docs/deepspeed.md has the reasons."""
    common = {"stage": stage, "reduce_bucket_size": 50_000_000, "allgather_bucket_size": 50_000_000}
    if stage < 3:
        return common
    return {
        **common,
        "overlap_comm": True,
        "contiguous_gradients": True,
        # What trains is gathered layer by layer; small tensors kept gathered would be fetched one by one.
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": 250_000_000 if partitioned else 50_000_000,
        "stage3_max_live_parameters": 1_000_000_000,
        "stage3_max_reuse_distance": 1_000_000_000,
    }


def merge(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `extra` put over it, section by section."""
    merged = dict(base)
    for key, value in extra.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged
