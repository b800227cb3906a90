"""What a shard recipe asks of the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from blsp.recipe import ShardRecipe
from blsp.writer_section import OpenAIWriterSection
from shards.sets.store import is_url
from shards.sets.teacher import TeacherSpec
from shards.targets.filters import Filters
from shards.writers.choice import chosen_backend
from shards.writers.endpoint import Endpoint

if TYPE_CHECKING:
    from shards.pipeline.cost import Cost
    from shards.pipeline.job import ShardJob


def shard_job(recipe: ShardRecipe) -> tuple[ShardJob, str]:
    """The job, and in words who writes and why."""
    from shards.pipeline.job import ShardJob

    writer, out = recipe.writer, recipe.out
    teacher = endpoint = revision = None
    batch_size, gain = 0, False  # an endpoint tells no probabilities
    if isinstance(writer, OpenAIWriterSection):
        endpoint = Endpoint(**{name: getattr(writer, name) for name in Endpoint.__dataclass_fields__})
    else:
        revision, batch_size, gain = writer.revision, writer.batch_size, writer.gain
        if writer.teacher is not None:
            teacher = TeacherSpec(writer.teacher.top_k, writer.teacher.temperatures)
    backend, why = chosen_backend(writer.backend, teacher is not None)
    job = ShardJob(
        manifests=recipe.manifests,
        splits=recipe.splits,
        base=recipe.base,
        out=out,
        llm=writer.llm,
        revision=revision,
        prompt=writer.prompt,
        max_new_tokens=writer.max_new_tokens,
        batch_size=batch_size,
        teacher=teacher,
        gain=gain,
        filters=Filters(recipe.filters.drop, recipe.filters.min_gain),
        backend=backend,
        endpoint=endpoint,
        cache=writer.cache or (None if is_url(out) else Path(f"{out.rstrip('/')}.generations")),
        clips_per_shard=recipe.clips_per_shard,
        cpu_actors=recipe.cpu_actors,
        llm_actors=recipe.llm_actors,
        ray_address=recipe.ray_address,
    )
    return job, f"{backend if endpoint is None else endpoint.host} writes: {why}"


def cost_line(cost: Cost) -> str:
    """For people, before anything is written."""
    about = "" if cost.counted else " (guessed from their characters)"
    parts = [
        f"{cost.clips:,} continuations to write: about {cost.prompt_tokens:,} tokens read{about}, at most "
        f"{cost.new_tokens:,} written"
    ]
    if cost.dollars is not None:
        parts.append(f"at most {cost.dollars:,.2f} dollars")
    if cost.hours is not None:
        parts.append(f"{cost.hours:,.2f} hours at the rate of the last run")
    if cost.teacher_bytes_per_hour is not None:
        parts.append(f"at most {cost.teacher_bytes_per_hour / 1e6:,.1f} MB of the LLM's predictions per hour of audio")
    return "; ".join(parts)
