"""Bytes that a micro-batch's forward keeps for its backward, part by part, from sizes alone.

T tokens of H values in the LLM, P encoder positions of D values; s bytes a value (2 or 4). What is kept follows from
which weights learn: a frozen map needs only its weight to pass a gradient on, one that learns needs its input too.
    LLM layer       2 norms in float32 8 T H; q, k, v and what attention gives; silu's input, its output and up 3 T I s
    LoRA            the input of each map, which maps share unless dropout makes it another for each
    encoder layer   16 P D s where it learns: norms' inputs and outputs, q, k, v, attention's, and 4 D each around GELU
    checkpointing   the layer's input alone; one layer at a time is then kept again
Tests hold this against what autograd keeps, within 10 %.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields

from blsp.estimate.families import Linear, Llm
from blsp.estimate.parts import Parts, targeted
from blsp.recipe import ConvSection, EncoderLoraSection, LoraSection, StackMlpSection, StageSection

_FLOAT32 = 4
ROWS_PER_CHUNK = 512  # as blsp/losses.py
# Measured, for each logit; bfloat16 takes half a byte less.
_LOGIT_BYTES = {"ce": 13, "kl live": 37, "kl cached": 21}


@dataclass(frozen=True)
class MicroBatch:
    """What one holds: numbers of all its clips together."""

    clips: float
    heard: float  # encoder positions, the window's silence included
    positions: float  # without it
    speech: float  # speech tokens
    tokens: float  # the student's
    teacher_tokens: float  # a live teacher's
    rows: float  # of logits

    def times(self, factor: float) -> MicroBatch:
        """So many times as much of everything."""
        return MicroBatch(*(getattr(self, field.name) * factor for field in fields(self)))


@dataclass(frozen=True)
class Kept:
    """Bytes of one micro-batch at the height of its backward."""

    encoder: float
    adapter: float
    llm: float
    again: float  # of the one layer that checkpointing computes again
    logits: float  # while a loss is computed

    @property
    def by_autograd(self) -> float:
        """From forward to backward."""
        return self.encoder + self.adapter + self.llm

    @property
    def peak(self) -> float:
        """Logits are gone before a layer is computed again."""
        return self.by_autograd + max(self.again, self.logits)


def kept(
    parts: Parts,
    stage: StageSection,
    checkpointing: Collection[str],
    dtype_bytes: int,
    batch: MicroBatch,
    on_cpu: bool = False,
) -> Kept:
    """`checkpointing` names what `engine.gradient_checkpointing` does. A CPU keeps dropout's mask in the numbers' own
    type, and attention's result once more."""
    heard = _encoder(parts, stage, "encoder" in checkpointing, dtype_bytes, batch, on_cpu)
    spoken = _llm(parts.llm, parts.lora, "llm" in checkpointing, dtype_bytes, batch, on_cpu)
    losses = len({"ce", "kl"} & set(stage.losses))
    rows = losses * batch.rows * parts.llm.width * dtype_bytes
    return Kept(
        encoder=heard.kept,
        adapter=_adapter(parts, dtype_bytes, batch),
        llm=spoken.kept + rows,
        again=max(heard.again, spoken.again),
        logits=min(batch.rows, ROWS_PER_CHUNK) * parts.llm.vocabulary * _logit_bytes(stage),
    )


@dataclass(frozen=True)
class _Layers:
    kept: float
    again: float


def _layers(each: float, one_input: float, number: int, checkpointed: bool) -> _Layers:
    return _Layers(number * one_input, each) if checkpointed else _Layers(number * each, 0)


def _llm(llm: Llm, lora: LoraSection | None, checkpointed: bool, size: int, batch: MicroBatch, on_cpu: bool) -> _Layers:
    tokens, attending = batch.tokens, llm.heads * llm.head_width
    keys = llm.kv_heads * llm.head_width
    norms = 2 * tokens * _FLOAT32 * (llm.width + 2)
    if llm.qk_norm:
        norms += tokens * _FLOAT32 * (attending + keys + 2 * (llm.heads + llm.kv_heads))
    attention = tokens * (2 * attending + 2 * keys) * size + tokens * llm.heads * _FLOAT32
    gated = 3 * tokens * llm.inner * size
    each = norms + attention + gated
    if lora is not None:
        chosen = targeted(llm.linears, lora.targets, "model.lora.targets")
        each += _lora(chosen, lora, tokens, size, on_cpu)
    last = tokens * _FLOAT32 * (llm.width + 2)
    layers = _layers(each, tokens * llm.width * size, llm.layers, checkpointed)
    rotary = 2 * tokens * llm.head_width * size
    return _Layers(layers.kept + last + rotary, layers.again)


_BEHIND_NORM = {"q_proj", "k_proj", "v_proj"}
# Maps that are given the same input.
_TOGETHER = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}


def _lora(
    chosen: list[Linear], section: LoraSection | EncoderLoraSection, tokens: float, size: int, on_cpu: bool
) -> float:
    values = sum(section.rank * size for _ in chosen)
    if section.dropout:
        # Each has an input of its own, thinned out, and where it was.
        values += sum(linear.before * (size + (size if on_cpu else 1)) for linear in chosen)
    else:
        inputs = {_TOGETHER.get(linear.name, linear.name): linear.before for linear in chosen}
        values += sum(inputs.values()) * size
    return tokens * values


def _encoder(
    parts: Parts, stage: StageSection, checkpointed: bool, size: int, batch: MicroBatch, on_cpu: bool
) -> _Layers:
    encoder, lora = parts.encoder, parts.encoder_lora
    learns, adapted = "encoder" in stage.train, "encoder_lora" in stage.train
    if not (learns or adapted):
        return _Layers(0, 0)
    positions, width = batch.heard, encoder.width
    attention = 4 * positions * width * size + positions * encoder.heads * _FLOAT32
    norms = 2 * positions * (width * size + 2 * _FLOAT32)
    activation = positions * encoder.inner * size
    each, first = attention + norms + activation, 0.0
    if learns:
        # Windows of both convolutions, and what their activation is given.
        first = positions * (2 * (3 * encoder.mel_bins + width) + 4 * width) * size
        # Inputs of q, k and v, of fc1 and of fc2; that of out is what attention gives.
        each += positions * (2 * width + (width if on_cpu else 0) + encoder.inner) * size
    elif lora is not None:
        chosen = targeted(encoder.linears, lora.targets, "model.encoder_lora.targets")
        each += _lora(chosen, lora, positions, size, on_cpu)
        if not checkpointed:
            # What the first layer is given needs no gradient: neither its norm nor dropout keeps anything for one.
            masks = len(_BEHIND_NORM & {linear.name for linear in chosen}) if lora.dropout else 0
            first = -positions * width * (size + masks * (size if on_cpu else 1))
    layers = _layers(each, positions * width * size, encoder.layers, checkpointed)
    return _Layers(layers.kept + first + positions * width * size, layers.again)


def _adapter(parts: Parts, size: int, batch: MicroBatch) -> float:
    section, width, llm_width = parts.adapter, parts.encoder.width, parts.llm.width
    if isinstance(section, ConvSection):
        values, positions = 0.0, batch.positions
        for i, kernel in enumerate(section.kernels):
            positions /= 2
            after = llm_width if i + 1 == len(section.kernels) else width
            values += positions * (kernel * width + 2 * after)
        values += batch.speech * (2 * llm_width + 2 * section.bottleneck)
        return values * size
    assert isinstance(section, StackMlpSection)
    return batch.speech * (2 * width * section.stack + 5 * section.hidden + llm_width) * size


def _logit_bytes(stage: StageSection) -> int:
    """For each logit of a chunk of rows, at the height of its loss: float32 copies of both sides, their logarithms and
    their gradients."""
    kl = _LOGIT_BYTES[f"kl {stage.teacher}"] if "kl" in stage.losses else 0
    return max(kl, _LOGIT_BYTES["ce"] if "ce" in stage.losses else 0)
