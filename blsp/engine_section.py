"""The section `engine` of a recipe: how DeepSpeed is set up, what is saved and logged, and when a step is left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from blsp.section import Listed, Problem, Section, Text

# Keys of the generated DeepSpeed JSON that follow from the recipe, and the field that decides them.
_DECIDED_BY = {
    "train_batch_size": "data.clips_per_step",
    "train_micro_batch_size_per_gpu": "data.micro_batches",
    "gradient_accumulation_steps": "data.micro_batches",
    "gradient_clipping": "optim.clip_norm",
    "optimizer": "optim",
    "scheduler": "optim.schedule",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
}


class EngineSection(Section):
    zero_stage: int = Field(3, ge=0, le=3, description="DeepSpeed ZeRO stage")
    frozen: Literal["auto", "resident", "partitioned"] = Field(
        "auto",
        description="frozen weights: whole on every rank, or cut by ZeRO-3; auto: resident if a card holds them",
    )
    gradient_checkpointing: Listed[Literal["encoder", "llm"]] = Field(
        (), description="parts that recompute activations in the backward pass to save memory"
    )
    checkpoint_every_steps: PositiveInt = Field(description="a checkpoint is also written at the end")
    keep_checkpoints: PositiveInt = Field(2, description="newest checkpoints that are kept")
    log_every_steps: PositiveInt = Field(10, description="how often a line goes to log.jsonl and TensorBoard")
    bad_step: Literal["raise", "skip"] = Field(
        "raise",
        description="a step whose loss or gradient is not finite, or leaps: raise ends the run, skip leaves it out",
    )
    leap_sigmas: PositiveFloat | Literal["auto"] | None = Field(
        "auto",
        description="a loss leaps when it is so many standard deviations above the mean of the last 128 steps (raise: "
        "and above twice the mean and 1 above it; skip: so does a gradient's norm); auto: raise 20, skip 6; null: none "
        "does",
    )
    skipped_in_a_row: PositiveInt = Field(4, description="steps left out one after the other; one more ends the run")
    skipped_in_all: PositiveInt = Field(100, description="steps left out in the whole run; one more ends it")
    deepspeed: dict[str, Any] = Field({}, description="keys merged into the generated DeepSpeed JSON")
    accept: Listed[Text] = Field(
        (), description="changes since the checkpoint to go on with, by the names that the refusal gives them"
    )

    def problems(self) -> Iterator[Problem]:
        for key, field in _DECIDED_BY.items():
            if key in self.deepspeed:
                yield ("deepspeed", key), f"follows from {field}; set that instead"
        if self.frozen == "partitioned" and self.zero_stage < 3:
            yield ("frozen",), f"only ZeRO-3 cuts weights, not zero_stage = {self.zero_stage}; set it to 3, or resident"
        zero = self.deepspeed.get("zero_optimization", {})
        if isinstance(zero, dict) and "stage" in zero:
            yield ("deepspeed", "zero_optimization", "stage"), "follows from engine.zero_stage; set that instead"
