"""Floating-point operations of a micro-batch, all that are computed, from sizes alone; a multiplication with its
addition is two.

As blsp/flops.py counts them, which leaves out what is not useful; here silence that an encoder's window adds, its first
convolutions and what is computed a second time are counted too, because they take time.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from blsp.estimate.activations import MicroBatch
from blsp.estimate.families import Llm, Whisper
from blsp.estimate.parts import Parts
from blsp.recipe import ConvSection, StackMlpSection, StageSection


@dataclass(frozen=True)
class Operations:
    """Of one micro-batch, by part."""

    encoder: float
    adapter: float
    teacher: float
    student: float
    head: float
    again: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.encoder + self.adapter + self.teacher + self.student + self.head + self.again


def operations(parts: Parts, stage: StageSection, checkpointing: Collection[str], batch: MicroBatch) -> Operations:
    """`checkpointing` names what `engine.gradient_checkpointing` does."""
    llm = parts.llm
    listened, layer_maps = _decoded(llm, batch.tokens, batch.clips), 2 * _multiplying(llm) * batch.tokens
    live = "kl" in stage.losses and stage.teacher == "live"
    read = _decoded(llm, batch.teacher_tokens, batch.clips) if live else 0
    attention = listened - layer_maps
    student = 2 * layer_maps + 3 * attention + 6 * _added(parts, "lora") * batch.tokens
    heard = _heard(parts.encoder, batch)
    learns = {"encoder": 3, "encoder_lora": 2}
    passes = max((learns.get(part, 1) for part in stage.train), default=1)
    encoder = passes * heard + 6 * _added(parts, "encoder_lora") * batch.heard
    row = 2 * llm.embeddings * batch.rows
    head = (2 + live) * row if "kl" in stage.losses else 0
    head += 2 * row if "ce" in stage.losses else 0
    again = attention / 2  # the scores, which attention's kernels do not keep
    if "llm" in checkpointing:
        # torch stops where nothing more is needed: before each layer's last map.
        again += listened - 2 * llm.layers * llm.width * llm.inner * batch.tokens
    if "encoder" in checkpointing:
        again += heard
    return Operations(encoder, _adapted(parts, stage, batch), read, student, head, again)


def layer_passes(parts: Parts, stage: StageSection, checkpointing: Collection[str]) -> int:
    """Times that a micro-batch passes a layer: forward, a second time where that is recomputed, and backward."""
    live = "kl" in stage.losses and stage.teacher == "live"
    decoded = 2 + live + ("llm" in checkpointing)
    learns = not {"encoder", "encoder_lora"}.isdisjoint(stage.train)
    heard = 2 + ("encoder" in checkpointing) if learns else 1
    return decoded * parts.llm.layers + heard * parts.encoder.layers


def _multiplying(llm: Llm) -> int:
    return llm.layers * sum(linear.before * linear.after for linear in llm.linears)


def _decoded(llm: Llm, tokens: float, sequences: float) -> float:
    """Forward. Causal attention counts in full."""
    pairs = tokens * tokens / max(1, sequences)
    return 2 * _multiplying(llm) * tokens + 4 * llm.layers * llm.heads * llm.head_width * pairs


def _heard(encoder: Whisper, batch: MicroBatch) -> float:
    """Forward."""
    maps = encoder.layers * sum(linear.before * linear.after for linear in encoder.linears)
    convolutions = 2 * 3 * encoder.mel_bins * encoder.width + 3 * encoder.width**2  # the first at twice the rate
    pairs = batch.heard * batch.heard / max(1, batch.clips)
    return 2 * (maps + convolutions) * batch.heard + 4 * encoder.layers * encoder.width * pairs


def _added(parts: Parts, name: str) -> int:
    """Elements of LoRA."""
    return sum(parts.tensors.get(name, []))


def _adapted(parts: Parts, stage: StageSection, batch: MicroBatch) -> float:
    """Forward and backward; a frozen encoder needs no gradient from the first map."""
    section, width, llm_width = parts.adapter, parts.encoder.width, parts.llm.width
    below = not {"encoder", "encoder_lora"}.isdisjoint(stage.train)
    if isinstance(section, ConvSection):
        total, positions = 0.0, batch.positions
        for i, kernel in enumerate(section.kernels):
            positions /= 2
            after = llm_width if i + 1 == len(section.kernels) else width
            total += (3 if i or below else 2) * 2 * kernel * width * 2 * after * positions
        return total + 3 * 2 * 2 * llm_width * section.bottleneck * batch.speech
    assert isinstance(section, StackMlpSection)
    first, second = width * section.stack * 2 * section.hidden, section.hidden * llm_width
    return 2 * batch.speech * ((3 if below else 2) * first + 3 * second)
