"""From a recipe to the numbers that `cluster.forecast` reckons with."""

from __future__ import annotations

from typing import Any

from blsp import zero
from blsp.estimate.activations import ROWS_PER_CHUNK, kept
from blsp.estimate.families import NoFormula
from blsp.estimate.operations import layer_passes, operations
from blsp.estimate.parts import Parts, weights
from blsp.estimate.workload import Workload
from blsp.estimate.writing import LAYER_S
from blsp.recipe import TrainRecipe
from cluster.forecast import Job
from cluster.sharding import Zero

# Weights or states elsewhere than on the GPUs, or in fewer bits.
_NOT_RECKONED = ("offload_", "zero_hpz", "zero_quantized", "mics_", "zenflow")


def job(recipe: TrainRecipe, parts: Parts, workload: Workload) -> Job:
    """Of a recipe whose micro-batches are those of `workload`. Raises NoFormula for DeepSpeed's other ways."""
    stage, checkpointing, tensors = recipe.stage, recipe.engine.gradient_checkpointing, weights(parts, recipe)
    held = kept(parts, stage, checkpointing, tensors.bytes_each, workload.largest)
    cut = recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"zero_stage": 3})})
    settings: dict[str, Any] = zero.config(cut, 1, partitioned=True)["zero_optimization"]
    if moved := sorted(key for key in settings if key.startswith(_NOT_RECKONED)):
        raise NoFormula(
            f"engine.deepspeed: zero_optimization.{moved[0]} is not reckoned with here, and nothing is guessed; leave "
            "it out of what is estimated"
        )
    return Job(
        weights=tensors,
        activation_bytes=held.by_autograd,
        again_bytes=held.again,
        logit_bytes=held.logits * max(1.0, workload.largest.rows / ROWS_PER_CHUNK),
        most_logit_bytes=held.logits * max(1.0, ROWS_PER_CHUNK / workload.largest.rows),
        flops=operations(parts, stage, checkpointing, workload.mean).total,
        micro_batches=recipe.data.micro_batches,
        frozen_fetched=_frozen_fetched(parts, recipe),
        max_live=min(settings["stage3_max_live_parameters"], settings["stage3_max_reuse_distance"]),
        prefetched=settings["stage3_prefetch_bucket_size"],
        bucket=settings["reduce_bucket_size"],
        launch_s=layer_passes(parts, stage, checkpointing) * LAYER_S,
        overlapping=frozenset(number for number in (1, 2, 3) if _overlaps(recipe, number)),
    )


def _overlaps(recipe: TrainRecipe, stage: int) -> bool:
    """Whether DeepSpeed sends while it computes; where nothing is said, stage 3 alone does."""
    asked = recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"zero_stage": stage})})
    said = zero.config(asked, 1, partitioned=False)["zero_optimization"].get("overlap_comm")
    return stage == 3 if said is None else bool(said)


def wanted(recipe: TrainRecipe, ranks: int) -> list[Zero]:
    """The settings that a recipe leaves open on so many ranks. Raises ValueError for ZeRO-0, which nothing cuts."""
    engine = recipe.engine
    if engine.zero_stage == 0:
        raise ValueError("engine.zero_stage: there is no formula for 0, without ZeRO; set it to 1, 2 or 3")
    choices = (False,) if engine.zero_stage < 3 or engine.frozen == "resident" else (False, True)
    choices = (True,) if engine.frozen == "partitioned" else choices
    return [Zero(engine.zero_stage, ranks, partitioned) for partitioned in choices]


def _frozen_fetched(parts: Parts, recipe: TrainRecipe) -> int:
    """Elements that a micro-batch gathers when nothing stays gathered: layers for the teacher's pass, the student's,
    its backward and what is computed again; the head for each loss and its gradient; the table for each text."""
    stage, llm = recipe.stage, parts.llm
    live = "kl" in stage.losses and stage.teacher == "live"
    passes = 2 + live + ("llm" in recipe.engine.gradient_checkpointing)
    layers = llm.layers * sum(llm.layer) + llm.width
    heads = 2 * len({"kl", "ce"} & set(stage.losses))
    encoder = 0
    if "encoder" not in stage.train:
        passes_heard = 2 + ("encoder" in recipe.engine.gradient_checkpointing) if "encoder_lora" in stage.train else 1
        encoder = passes_heard * sum(parts.encoder.tensors)
    return passes * layers + (heads + 1 + live) * llm.embeddings + encoder
