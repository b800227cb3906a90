"""How many floating-point operations a step of stage 1 takes, run in one way or another, from shapes and lengths alone:
all matrix products, convolutions and attention; a multiplication with its addition is two.

N weights of a part, t positions that pass through it:
    frozen, forward                         2 N t
    frozen, gradient of its input           2 N t more (the LLM under the student; not the encoder, not the teacher)
    learning                                2 N t more for its weights (the adapter)
    attention, q queries on k keys          4 q k width in each layer, and 8 q k width for its gradient
    head, r rows of logits                  2 V H r, and 2 V H r for the gradient of the student's rows
Apart from these: what is computed a second time in the backward pass (the LLM under gradient checkpointing, the scores
of fused attention). Causal attention counts in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from transformers import Qwen2Config, WhisperConfig

from blsp.encoder import SpeechEncoder
from blsp.features import AudioWindow, num_frames
from tests.bench.train.shapes import Shapes
from tests.bench.train.workload import Lengths

_KERNEL = 5  # of the adapter's three convolutions


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a step is run. `padded`: segments apart, with eager attention."""

    window: str = "exact"
    padded: bool = False
    all_logits: bool = False
    shared_prefix: bool = True
    cached_teacher: bool = False
    checkpointing: bool = False


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Of one step, by part."""

    encoder: float
    adapter: float
    teacher: float
    student: float
    head: float
    recomputed: float

    @property
    def total(self) -> float:
        return sum(float(getattr(self, field.name)) for field in fields(self))


@dataclass(frozen=True)
class _Pass:
    """The LLM over packed sequences: query positions, and the sum over sequences of queries times keys."""

    tokens: int
    pairs: int

    @classmethod
    def over(cls, before: int, own: Sequence[int], shared: bool) -> _Pass:
        """Sequences of `own` tokens after `before` common ones, which are computed once if they are shared."""
        if not shared:
            whole = [before + n for n in own]
            return cls(sum(whole), sum(n * n for n in whole))
        return cls(before + sum(own), before * before + sum(n * (before + n) for n in own))


def step_flops(shapes: Shapes, lengths: Lengths, way: Way) -> Flops:
    """Of one micro-batch: forward, backward, no optimizer."""
    llm, n = shapes.llm, len(lengths.samples)
    response = [max(lengths.response)] * n if way.padded else lengths.response
    rest = [lengths.suffix + r for r in response]
    student, teacher = (
        _Pass.over(lengths.prefix, [a + b for a, b in zip(middle, rest, strict=True)], way.shared_prefix)
        for middle in (_segment(lengths.speech, way.padded), _segment(lengths.transcript, way.padded))
    )
    rows = sum(lengths.response)
    row_flops = 2 * llm.vocab_size * llm.hidden_size
    heard = student.tokens if way.all_logits else rows
    read = (teacher.tokens if way.all_logits else rows) if not way.cached_teacher else 0
    forward = 2 * llm_weights(llm) * student.tokens + _llm_attention(llm) * student.pairs
    backward = 2 * llm_weights(llm) * student.tokens + 2 * _llm_attention(llm) * student.pairs
    again = 0.0
    if way.checkpointing:
        # torch stops where nothing more is needed: before each layer's last map.
        last = 2 * llm.num_hidden_layers * llm.hidden_size * llm.intermediate_size * student.tokens
        again += forward - last
    again += 0 if way.padded else _llm_attention(llm) * student.pairs / 2
    return Flops(
        encoder=_encoder(shapes.encoder, lengths, way),
        adapter=_adapter(shapes, lengths, way),
        teacher=2 * llm_weights(llm) * teacher.tokens + _llm_attention(llm) * teacher.pairs
        if not way.cached_teacher
        else 0,
        student=forward + backward,
        head=row_flops * (2 * heard + read),
        recomputed=again,
    )


def _segment(each: Sequence[int], padded: bool) -> list[int]:
    return [max(each)] * len(each) if padded else list(each)


def llm_weights(config: Qwen2Config) -> int:
    """N of the LLM's layers, without embeddings and head."""
    width, inner = config.hidden_size, config.intermediate_size
    head_width = width // config.num_attention_heads
    attention = 2 * width * width + 2 * width * head_width * config.num_key_value_heads
    return config.num_hidden_layers * int(attention + 3 * width * inner)


def _llm_attention(config: Qwen2Config) -> int:
    """Per pair of query and key."""
    return 4 * int(config.num_hidden_layers * config.hidden_size)


def _encoder(config: WhisperConfig, lengths: Lengths, way: Way) -> float:
    width, window = config.d_model, AudioWindow(way.window)
    frames = [num_frames(window.padded(samples)) for samples in lengths.samples]
    positions = [SpeechEncoder.num_positions(window.padded(samples)) for samples in lengths.samples]
    weights = config.encoder_layers * (4 * width * width + 2 * width * config.encoder_ffn_dim) + 3 * width * width
    attention = 4 * config.encoder_layers * width * sum(p * p for p in positions)
    convolution = 2 * 3 * config.num_mel_bins * width * sum(frames)
    mel = 2 * 201 * config.num_mel_bins * sum(frames)
    return 2 * weights * sum(positions) + attention + convolution + mel


def _adapter(shapes: Shapes, lengths: Lengths, way: Way) -> float:
    width, llm_width = shapes.encoder.d_model, shapes.llm.hidden_size
    positions = _segment([SpeechEncoder.num_positions(samples) for samples in lengths.samples], way.padded)
    flops = 0
    for i, after in enumerate((width, width, llm_width)):
        positions = [(p - 1) // 2 + 1 for p in positions]
        passes = 2 if i == 0 else 3  # the frozen encoder needs no gradient
        flops += passes * 2 * _KERNEL * width * 2 * after * sum(positions)
    return flops + 3 * 2 * 2 * llm_width * shapes.bottleneck * sum(positions)
