"""Speech encoders, and Whisper's on true lengths: transformers' modules and weights, our own order of calls.

transformers' own forward insists on 30 s of input and ignores masks; here clips of any length are packed. With the
"30s" window the result equals transformers' on the same clip.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from blsp.features import HOP, AudioWindow, log_mel, num_frames
from blsp.lora import add_lora
from blsp.packing import PackedConv1d, attention_implementation, bounds
from blsp.pretrained import load_whole
from blsp.recipe import EncoderLoraSection
from blsp.wave_encoder import WAVE_MODELS, WaveEncoder, load_wave_encoder, new_wave_model, wave_positions
from shards.foreign_models import in_a_sentence


class _EncoderOnly(WhisperEncoder):
    # A whole Whisper's other half is no surprise.
    _keys_to_ignore_on_load_unexpected = {r"^(model\.)?decoder\.", r"^proj_out\."}  # noqa: RUF012


def load_whisper_encoder(path: str, dtype: torch.dtype, device: torch.device) -> WhisperEncoder:
    """The encoder of a Whisper folder or hub id, saved as a whole or as the encoder alone.

    Raises ValueError when `path` holds another model, or not every weight of the encoder.
    """
    with in_a_sentence(path, "model.encoder"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if not isinstance(config, WhisperConfig):
        raise ValueError(f"model.encoder: {path} is a {config.model_type} model, not a Whisper, a WavLM or a HuBERT")
    encoder: Any = load_whole(
        _EncoderOnly, path, "model.encoder", others=True, dtype=dtype, key_mapping={r"^(model\.)?encoder\.": ""},
        attn_implementation=attention_implementation(device, dtype),
    )  # fmt: skip
    encoder.to(device)
    assert isinstance(encoder, WhisperEncoder)
    return encoder


class SpeechEncoder(nn.Module):
    """log-mel -> Whisper's layers. P encoder positions (50 per second), D width."""

    def __init__(self, whisper: WhisperEncoder, window: AudioWindow) -> None:
        super().__init__()
        whisper.conv1, whisper.conv2 = PackedConv1d.of(whisper.conv1), PackedConv1d.of(whisper.conv2)
        self.whisper = whisper
        self.window = window

    def trainable(self) -> nn.ModuleDict:
        """What a stage may train, by name: all but the fixed position table."""
        return nn.ModuleDict({n: getattr(self.whisper, n) for n in ("conv1", "conv2", "layers", "layer_norm")})

    # Linear layers whose weights are used without a call, which LoRA cannot reach.
    uncalled: frozenset[str] = frozenset()

    @property
    def pretrained(self) -> PreTrainedModel:
        """transformers' model."""
        return self.whisper

    @property
    def width(self) -> int:
        """D."""
        return int(self.whisper.config.d_model)

    @property
    def max_samples(self) -> int:
        """The longest clip that fits the encoder's positions, the window's silence included."""
        return longest_clip(self.whisper.config, self.window)

    @staticmethod
    def num_positions(num_samples: int) -> int:
        """P for a clip, without the window's silence."""
        return _whisper_positions(num_samples)

    def forward(self, waveform: Tensor, num_samples: Tensor) -> tuple[Tensor, list[int]]:
        """int16 [sum N], int64 [n] -> [sum P, D] and P of each clip; positions of the window's silence are cut off."""
        whisper = self.whisper
        dtype = whisper.conv1.bias.dtype if whisper.conv1.bias is not None else whisper.conv1.weight.dtype
        mel, frames = log_mel(waveform, num_samples, self.window, whisper.config.num_mel_bins)
        hidden, lengths = whisper.conv1(mel.to(dtype), frames)
        hidden, lengths = whisper.conv2(functional.gelu(hidden), lengths)
        limit = whisper.config.max_source_positions
        if max(lengths) > limit:
            raise ValueError(f"a clip of {max(lengths) / 50:.1f} s is longer than the encoder's {limit / 50:.0f} s")
        positions = torch.cat([whisper.embed_positions.weight[:length] for length in lengths])
        packed = (functional.gelu(hidden) + positions.to(dtype))[None]
        where = bounds(lengths, packed.device)
        for layer in whisper.layers:
            packed = layer(packed, None, **where)
        packed = whisper.layer_norm(packed)[0]
        kept = [self.num_positions(n) for n in num_samples.tolist()]
        clips = [clip[:keep] for clip, keep in zip(packed.split(lengths), kept, strict=True)]
        return torch.cat(clips), kept


Encoder = SpeechEncoder | WaveEncoder


def _whisper_positions(num_samples: int) -> int:
    return (num_frames(num_samples) - 1) // 2 + 1


def num_positions(config: PreTrainedConfig, num_samples: int) -> int:
    """P of a clip for an encoder of this configuration. Raises ValueError for one too short to be heard."""
    return wave_positions(config, num_samples) if config.model_type in WAVE_MODELS else _whisper_positions(num_samples)


def longest_clip(config: PreTrainedConfig, window: AudioWindow) -> int:
    """The most samples that fit an encoder's positions, the window's silence included. WavLM's and HuBERT's positions
    are relative: memory is their only limit."""
    return sys.maxsize if config.model_type in WAVE_MODELS else window.longest(config.max_source_positions * 2 * HOP)


def new_encoder(
    config: PreTrainedConfig, window: AudioWindow, normalised: bool, dtype: torch.dtype, attention: str
) -> Encoder:
    """An encoder of this configuration whose weights are still to come; `normalised` as `load_wave_encoder` says."""
    if config.model_type in WAVE_MODELS:
        return WaveEncoder(new_wave_model(config, dtype, attention), normalised)
    return SpeechEncoder(WhisperEncoder._from_config(config, dtype=dtype, attn_implementation=attention), window)


def load_encoder(path: str, window: AudioWindow, dtype: torch.dtype, device: torch.device) -> Encoder:
    """The encoder of a Whisper, WavLM or HuBERT folder or hub id.

    Raises ValueError when `path` holds another model or not every weight, or when its encoder knows no such window.
    """
    with in_a_sentence(path, "model.encoder"):
        model_type = AutoConfig.from_pretrained(path, trust_remote_code=False).model_type
    if model_type not in WAVE_MODELS:
        return SpeechEncoder(load_whisper_encoder(path, dtype, device), window)
    if window.spec != "exact":
        raise ValueError(
            f"model.audio_window: {window.spec!r} means silence after the clip, which is Whisper's way; {path} is a "
            f"{model_type} model and hears the clip alone: set model.audio_window to exact"
        )
    return WaveEncoder(*load_wave_encoder(path, dtype, device))


def add_encoder_lora(encoder: Encoder, section: EncoderLoraSection) -> nn.ModuleDict:
    """Inject LoRA into an encoder; it acts on every clip. Returns the new layers.

    Raises ValueError when no layer is named as the section says, or when a delta there would never be added.
    """
    unheard = encoder.uncalled & set(section.targets)
    if unheard:
        raise ValueError(
            f"model.encoder_lora.targets: {', '.join(sorted(unheard))}: {encoder.pretrained.config.model_type}'s "
            "attention reads the weights of these layers and never calls them, so that LoRA there would do nothing; "
            "name others, as intermediate_dense and output_dense"
        )
    layers, gate = add_lora(
        encoder.pretrained, rank=section.rank, alpha=section.alpha, dropout=section.dropout,
        targets=list(section.targets), scope="all",
    )  # fmt: skip
    gate.open(torch.ones(1, 1, dtype=torch.bool))
    return layers
