"""What to change in a recipe that does not fit: named field by field, and tried before it is named."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from blsp.data_section import DataSection
from blsp.estimate.job import job, wanted
from blsp.estimate.parts import Parts
from blsp.estimate.workload import POSITIONS_PER_S, Clips, Workload, read_workload
from blsp.recipe import TrainRecipe
from cluster.choice import most_worth
from cluster.forecast import COUNTS, Job, memory, most_that_fits
from cluster.machines import Gpu
from cluster.sharding import Zero

_WORTH = 0.25  # micro-batches may get so much smaller before anything else is changed
_MARGINS = (1, 1.05, 1.2)  # tried one after the other: more micro-batches are not smaller in the same proportion


def refuse_what_does_not_fit(recipe: TrainRecipe, parts: Parts, clips: Clips, ranks: int, gpu: Gpu) -> None:
    """Raises ValueError, naming the fields to change, when no setting that the recipe leaves open fits, or when some
    rank would have no micro-batch."""
    if ranks > recipe.data.clips_per_step:
        raise ValueError(
            f"data.clips_per_step = {recipe.data.clips_per_step:g} is too few for {ranks} ranks, some of which would "
            f"have no clip; raise it and data.micro_batches to {ranks} at least"
        )
    if ranks > recipe.data.micro_batches:
        few = recipe.data.micro_batches
        raise ValueError(f"data.micro_batches = {few} is too few for {ranks} ranks; raise it to {ranks}")
    needed = _needed(recipe, parts, clips, ranks)
    if needed > gpu.memory_bytes:
        raise ValueError(
            f"{recipe.run}: needs {needed / 1e9:.1f} GB on each of {ranks} x {gpu.name}, which has "
            f"{gpu.memory_bytes / 1e9:.1f} GB; {_remedy(recipe, parts, clips, ranks, gpu)}"
        )


def refuse_micro_batches_without_a_clip(data: DataSection) -> None:
    """Raises ValueError where some would be empty."""
    if data.micro_batches > data.clips_per_step:
        raise ValueError(
            f"data.micro_batches = {data.micro_batches} is more than data.clips_per_step = {data.clips_per_step:g}: "
            f"some would hold no clip; set it to {int(data.clips_per_step)} or fewer"
        )


def fewer_micro_batches(recipe: TrainRecipe, workload: Workload, average: Job, zero: Zero, gpu: Gpu) -> int | None:
    """How many to have where most of their time goes into starting kernels; None where it does not, or where no larger
    ones fit the memory and the caps. `average` is the job with micro-batches of the mean size."""
    data, mean, most = recipe.data, workload.mean, most_worth(average, gpu)
    if most == data.micro_batches:
        return None
    caps = (
        ((data.caps.audio_s or math.inf) * POSITIONS_PER_S, mean.heard), (data.caps.tokens or math.inf, mean.tokens),
        (data.caps.response_tokens or math.inf, mean.rows),
    )  # fmt: skip
    larger = min(most_that_fits(average, zero, gpu), *(cap / size for cap, size in caps if size))
    number = max(max(n for n in COUNTS if n <= most), math.ceil(data.micro_batches / max(1.0, larger)))
    return number if number < data.micro_batches else None


def _needed(recipe: TrainRecipe, parts: Parts, clips: Clips, ranks: int) -> float:
    made = job(recipe, parts, read_workload(recipe, parts, clips))
    return min(memory(made, zero).total for zero in wanted(recipe, ranks))


def _remedy(recipe: TrainRecipe, parts: Parts, clips: Clips, ranks: int, gpu: Gpu) -> str:
    said: list[str] = []
    smaller = _smaller(recipe, parts, clips, ranks, gpu, _WORTH)
    for what, changes in _changes(recipe, ranks) if smaller is None else ():
        said.append(what)
        recipe = recipe.model_copy(update={"engine": recipe.engine.model_copy(update=changes)})
        if _needed(recipe, parts, clips, ranks) <= gpu.memory_bytes:
            return f"set {', '.join(said)}"
        if smaller := _smaller(recipe, parts, clips, ranks, gpu, _WORTH):
            break
    smaller = smaller or _smaller(recipe, parts, clips, ranks, gpu, 0)
    if smaller is None:
        return "no field is enough: take GPUs with more memory, or more of them, or a smaller model.llm"
    return f"set {', '.join([*said, smaller])}"


def _changes(recipe: TrainRecipe, ranks: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of the section `engine`, one more each time; what costs least time first."""
    engine = recipe.engine
    if engine.zero_stage < 3:
        yield "engine.zero_stage to 3", {"zero_stage": 3, "frozen": "resident"}
    if engine.frozen != "partitioned" and ranks > 1:
        yield "engine.frozen to partitioned", {"frozen": "partitioned"}
    recomputed = engine.gradient_checkpointing
    learns = not {"encoder", "encoder_lora"}.isdisjoint(recipe.stage.train)
    for part in ("encoder", "llm"):
        if part not in recomputed and (part == "llm" or learns):
            recomputed = (*recomputed, part)
            yield f"engine.gradient_checkpointing to [{', '.join(recomputed)}]", {"gradient_checkpointing": recomputed}


def _smaller(recipe: TrainRecipe, parts: Parts, clips: Clips, ranks: int, gpu: Gpu, worth: float) -> str | None:
    """Micro-batches that fit; None when they are less than `worth` of what they were, or hold no clip."""
    workload = read_workload(recipe, parts, clips)
    made = job(recipe, parts, workload)
    share = max(most_that_fits(made, zero, gpu) for zero in wanted(recipe, ranks))
    if share < worth or share * workload.mean.clips < 1:
        return None
    data = recipe.data
    # Where the plan is known, its largest micro-batch is; else the caps are all that bounds it.
    caps = {} if clips.rows is not None else data.caps.model_dump(exclude_none=True)
    for larger in _MARGINS:
        number = math.ceil(data.micro_batches / share * larger)
        lower = {name: math.floor(value * share / larger) for name, value in caps.items()}
        update = {"micro_batches": number, "caps": data.caps.model_copy(update=lower)}
        changed = recipe.model_copy(update={"data": data.model_copy(update=update)})
        if number <= data.clips_per_step and _needed(changed, parts, clips, ranks) <= gpu.memory_bytes:
            said = [f"data.caps.{name} to {value}" for name, value in lower.items()]
            return ", ".join([*said, f"data.micro_batches to {number}"])
    return None
