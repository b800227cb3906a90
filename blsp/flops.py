"""Useful floating-point operations of a micro-batch, from its lengths: what a model FLOP utilisation counts.

A multiplication with its addition is two. N weights of a part, t positions that pass through it:
    forward                                          2 N t
    gradient of its input                            2 N t more: the LLM under the student, whatever trains below it
    learning                                         2 N t more for its weights (adapter, LoRA, an encoder that trains)
    attention, s positions that look at k            4 s k width in each layer, 8 s k width for its gradient
    head, R rows of logits                           2 V H R, and 2 V H R for the gradient of the student's rows
Not counted, because it is not useful: silence that fills an encoder's window, and all that is computed a second time in
the backward pass. Nor the encoder's first convolutions (1 % in Whisper). Causal attention counts in full.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from blsp.model import SpeechLM
from blsp.recipe import StageSection
from cluster.machines import GPUS
from shards.batches.collate import Batch

# Dense bfloat16 per second, from the maker's data sheets; the first name that fits. Cards called NVL are slower than
# their namesakes, by how much is not known here.
_PEAKS = {
    "NVL": None, "H200": GPUS["h200"].peak_flops, "H100 PCIe": 756e12, "H100": GPUS["h100"].peak_flops, "H800": 989e12,
    "A100": GPUS["a100-80"].peak_flops, "A800": 312e12, "L40S": 362e12,
}  # fmt: skip


def peak_flops(device: torch.device) -> float | None:
    """What the device could do per second in bfloat16; None for one that we know nothing of."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in _PEAKS.items() if re.search(rf"\b{known}\b", name)), None)


class Flops:
    """Counts for one model in one stage."""

    def __init__(self, model: SpeechLM, stage: StageSection) -> None:
        self._model, self._stage = model, stage
        self._lora = _matrices(model.parts["lora"].parameters()) if "lora" in model.parts else 0
        embeddings: Any = model.llm.get_input_embeddings()
        decoder: Any = model.llm.get_decoder()
        self._llm = _passed(decoder, model.llm.config) - _matrices([embeddings.weight]) - self._lora
        self._llm_attention = 4 * model.llm.config.num_hidden_layers * _attention_width(model.llm.config)
        self._head = 2 * _matrices([embeddings.weight])
        layers: Any = model.encoder.trainable()["layers"]
        added = model.parts["encoder_lora"].parameters() if "encoder_lora" in model.parts else ()
        self._encoder_lora = _matrices(added)
        self._encoder = _matrices(layers.parameters()) - self._encoder_lora
        self._encoder_attention = 4 * len(layers) * model.encoder.width
        self._adapter = _matrices(model.parts["adapter"].parameters())

    def __call__(self, batch: Batch) -> float:
        """Forward and backward of one micro-batch; nan where the LLM does not say how many experts a position has."""
        positions = [self._model.encoder.num_positions(int(samples)) for samples in batch.num_samples]
        through = {"encoder": 3, "encoder_lora": 2}
        passes = max((through.get(part, 1) for part in self._stage.train), default=1)
        encoder = passes * (2 * self._encoder * sum(positions) + self._encoder_attention * _pairs(positions))
        encoder += 6 * self._encoder_lora * sum(positions)
        adapter = 6 * self._adapter * int(batch.speech_mask.sum())
        tokens, rows = sum(batch.seq_lens), len(batch.rows)
        student = 4 * self._llm * tokens + 6 * self._lora * tokens
        student += 3 * self._llm_attention * _pairs(batch.seq_lens, batch.prefix_of) + 2 * self._head * rows
        read = len(batch.text_rows)
        pairs = _pairs(batch.text_seq_lens, batch.text_prefix_of)
        teacher = 2 * self._llm * sum(batch.text_seq_lens) + self._llm_attention * pairs
        return float(encoder + adapter + student + teacher + self._head * read)


def _matrices(parameters: Iterable[nn.Parameter]) -> int:
    """Weights that multiply; biases and norms do not count."""
    return sum(math.prod(shape) for shape in _shapes(parameters) if len(shape) > 1)


def _shapes(parameters: Iterable[nn.Parameter]) -> list[tuple[int, ...]]:
    # Of a partitioned weight DeepSpeed keeps the shape.
    return [tuple(getattr(parameter, "ds_shape", parameter.shape)) for parameter in parameters]


def _passed(decoder: nn.Module, config: Any) -> float:
    """Weights of an LLM that one position multiplies with. Experts lie in stacks [experts, out, in]; a position passes
    through some of them only."""
    per_position = getattr(config, "num_experts_per_tok", None) or math.nan
    stacks = [shape for shape in _shapes(decoder.parameters()) if len(shape) == 3]
    others = _matrices(decoder.parameters()) - sum(map(math.prod, stacks))
    return others + sum(math.prod(shape[1:]) * per_position for shape in stacks)


def _attention_width(config: Any) -> int:
    """Of the heads together: not every LLM's is that of its hidden states (Qwen3, Gemma)."""
    heads: int = config.num_attention_heads
    head_width: int = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads * head_width


def _pairs(lengths: list[int], prefix_of: list[int] | None = None) -> int:
    """Positions times what each looks at: its sequence, and the one that this goes on from."""
    before = [lengths[prefix] if prefix >= 0 else 0 for prefix in prefix_of or [-1] * len(lengths)]
    return sum(length * (length + more) for length, more in zip(lengths, before, strict=True))
