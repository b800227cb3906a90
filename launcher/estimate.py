"""The verb estimate: what a recipe takes and how long it runs, by arithmetic alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from blsp.estimate.families import read_llm
from blsp.estimate.job import job, wanted
from blsp.estimate.parts import read_parts
from blsp.estimate.remedy import fewer_micro_batches, refuse_micro_batches_without_a_clip, refuse_what_does_not_fit
from blsp.estimate.workload import CLIP_S, WORD_TOKENS_PER_S, read_workload
from blsp.estimate.writing import refuse_what_does_not_fit as refuse_what_cannot_write
from blsp.estimate.writing import writing
from blsp.recipe import ShardRecipe, TrainRecipe
from blsp.writer_section import OpenAIWriterSection
from cluster.choice import best, choose
from cluster.forecast import COUNTS
from cluster.machines import FABRICS, GPUS, GPUS_PER_HOST
from cluster.sharding import Zero
from launcher.estimate_tables import Report

T = TypeVar("T")

# What a shard recipe says where no other does.
_BATCH_SIZE, _NEW_TOKENS = 32, 48


def run(recipe: TrainRecipe | ShardRecipe, gpus: int | None, gpu_name: str, fabric_name: str) -> None:
    """Prints it. Raises ValueError for what does not fit, naming the field to change, and for models that there is no
    formula for."""
    gpu, fabric = _named(GPUS, gpu_name, "--gpu"), _named(FABRICS, fabric_name, "--fabric")
    if isinstance(recipe, ShardRecipe):
        writer = recipe.writer
        if isinstance(writer, OpenAIWriterSection):
            raise ValueError(
                f"writer.backend: {writer.llm} is computed by others, at {writer.url}; `blsp shard` says what it will "
                "cost before the first request"
            )
        llm = read_llm(writer.llm, writer.revision, "writer.llm")
        made = writing(llm, gpu, CLIP_S * WORD_TOKENS_PER_S, writer.batch_size, writer.max_new_tokens)
        refuse_what_cannot_write(made, writer.batch_size, writer.llm, gpu)
        Report(gpu, fabric).writing(made, writer.batch_size, writer.max_new_tokens, None, CLIP_S)
        return
    refuse_micro_batches_without_a_clip(recipe.data)
    parts = read_parts(recipe)
    workload = read_workload(recipe, parts)
    needed = job(recipe, parts, workload)
    asked = wanted(recipe, 1)
    if gpus is None:
        choice = choose(needed, gpu, fabric, asked)
        if choice is None:
            one_host = max(n for n in COUNTS if n <= min(GPUS_PER_HOST, recipe.data.micro_batches))
            refuse_what_does_not_fit(recipe, parts, workload.clips, one_host, gpu)
        assert choice is not None
        rows, chosen, limit = choice.rows, choice.chosen, choice.limit
    else:
        refuse_what_does_not_fit(recipe, parts, workload.clips, gpus, gpu)
        found = best(needed, gpus, gpu, fabric, [Zero(zero.stage, gpus, zero.partitioned) for zero in asked])
        if found is None:
            raise ValueError(
                f"--fabric {fabric.name}: joins the GPUs of one host, and {gpus} are on several; name another"
            )
        rows, chosen, limit = (found,), found, ""
    report = Report(gpu, fabric)
    report.about(recipe, parts, workload, needed)
    average = job(recipe, parts, replace(workload, largest=workload.mean))
    report.memory(needed, average, workload, chosen)
    report.times(needed, rows, chosen, recipe, workload)
    spoken = writing(parts.llm, gpu, workload.clips.transcript, _BATCH_SIZE, _NEW_TOKENS)
    report.writing(spoken, _BATCH_SIZE, _NEW_TOKENS, workload.clips.number, workload.clips.seconds)
    report.recommend(chosen, limit, asked)
    report.larger(needed, fewer_micro_batches(recipe, workload, average, chosen.zero, gpu))
    report.assumptions(needed)


def _named(known: Mapping[str, T], name: str, option: str) -> T:
    if name not in known:
        raise ValueError(f"{option} {name}: is not one of {', '.join(known)}")
    return known[name]
