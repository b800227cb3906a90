"""WavLM's and HuBERT's encoders, which hear the waveform itself: transformers' modules and weights, packed clips.

A clip's result equals transformers' on that clip alone: the convolutions over samples run clip by clip (the base models
normalise over time there), all that a stage may train runs once per batch, behind masks. N samples of a clip, P encoder
positions (50 per second), D width.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import (
    AutoConfig,
    HubertModel,
    PreTrainedConfig,
    PreTrainedModel,
    Wav2Vec2FeatureExtractor,
    WavLMModel,
)

from blsp.features import AudioWindow
from blsp.packing import attention_implementation, bounds, pad_packed
from blsp.pretrained import load_whole
from shards.audio import SAMPLE_RATE
from shards.foreign_models import in_a_sentence

WAVE_MODELS: dict[str, type[HubertModel] | type[WavLMModel]] = {"hubert": HubertModel, "wavlm": WavLMModel}

# Fine-tuning of their day; a frozen encoder must not be noisy, and no draw may depend on a clip's neighbours.
_QUIET = dict.fromkeys(
    ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "layerdrop"), 0.0
)


def load_wave_encoder(path: str, dtype: torch.dtype, device: torch.device) -> tuple[PreTrainedModel, bool]:
    """A WavLM or HuBERT from a folder or hub id, and whether it wants each clip at mean 0 and variance 1.

    Raises ValueError when a weight is missing, or when its own settings ask for what cannot be kept here.
    """
    try:
        with in_a_sentence(path, "model.encoder"):
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
            extractor = Wav2Vec2FeatureExtractor.from_pretrained(path)
    except OSError as error:
        raise ValueError(
            f"model.encoder: {path} has no preprocessor_config.json, which says whether samples are normalised; save "
            "the model's feature extractor beside it"
        ) from error
    if extractor.sampling_rate != SAMPLE_RATE:
        raise ValueError(f"model.encoder: {path} hears {extractor.sampling_rate} Hz, but clips are at {SAMPLE_RATE} Hz")
    if getattr(config, "conv_pos_batch_norm", False):
        raise ValueError(f"model.encoder: {path} has a batch norm, through which clips would change one another")
    config.update(_QUIET)
    model: Any = load_whole(
        WAVE_MODELS[config.model_type], path, "model.encoder", spare=("masked_spec_embed",), others=True, config=config,
        dtype=dtype, attn_implementation=_attention(config, attention_implementation(device, dtype)),
    )  # fmt: skip
    _ready(model)
    model.to(device)
    assert isinstance(model, PreTrainedModel)
    return model, bool(extractor.do_normalize)


def new_wave_model(config: PreTrainedConfig, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """A model of this configuration whose weights are still to come."""
    kind: Any = WAVE_MODELS[config.model_type]
    model: PreTrainedModel = kind._from_config(config, dtype=dtype, attn_implementation=_attention(config, attention))
    _ready(model)
    return model


def _attention(config: PreTrainedConfig, wanted: str) -> str | None:
    """WavLM's attention is its own."""
    return wanted if config.model_type == "hubert" else None


def _ready(model: Any) -> None:
    # One plain weight in place of a direction and a length: the same function, and what ZeRO-3 gathers is what is used.
    parametrize.remove_parametrizations(model.encoder.pos_conv_embed.conv, "weight")
    # About how transformers calls torch in WavLM's attention.
    warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask", category=UserWarning)


def wave_positions(config: PreTrainedConfig, num_samples: int) -> int:
    """P for a clip. Raises ValueError for one shorter than the convolutions' reach (25 ms)."""
    length = num_samples
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        length = (length - kernel) // stride + 1
    if length < 1:
        raise ValueError(f"a clip of {num_samples} samples is too short for {config.model_type}; leave it out")
    return length


class WaveEncoder(nn.Module):
    """samples -> convolutions -> transformer layers. What a stage may train begins after the convolutions."""

    def __init__(self, model: PreTrainedModel, normalised: bool) -> None:
        super().__init__()
        self.model = model
        self.normalised = normalised
        self.window = AudioWindow("exact")

    def trainable(self) -> nn.ModuleDict:
        """What a stage may train, by name: all but the convolutions over samples, which fine-tuning leaves as is."""
        model: Any = self.model
        return nn.ModuleDict(
            {
                "feature_projection": model.feature_projection,
                "pos_conv_embed": model.encoder.pos_conv_embed,
                "layers": model.encoder.layers,
                "layer_norm": model.encoder.layer_norm,
            }
        )

    @property
    def uncalled(self) -> frozenset[str]:
        """Linear layers whose weights are used without a call, which LoRA cannot reach."""
        wavlm = self.model.config.model_type == "wavlm"
        return frozenset({"q_proj", "k_proj", "v_proj", "out_proj"} if wavlm else ())

    @property
    def pretrained(self) -> PreTrainedModel:
        """transformers' model."""
        return self.model

    @property
    def width(self) -> int:
        """D."""
        return int(self.model.config.hidden_size)

    @property
    def max_samples(self) -> int:
        """The longest clip: positions are relative, so there is no limit but memory."""
        return sys.maxsize

    def num_positions(self, num_samples: int) -> int:
        """P for a clip. Raises ValueError for one shorter than the convolutions' reach (25 ms)."""
        return wave_positions(self.model.config, num_samples)

    def forward(self, waveform: Tensor, num_samples: Tensor) -> tuple[Tensor, list[int]]:
        """int16 [sum N], int64 [n] -> [sum P, D] and P of each clip."""
        model: Any = self.model
        clips = waveform.split(num_samples.tolist())
        lengths = [self.num_positions(len(clip)) for clip in clips]
        with torch.no_grad():
            heard = torch.cat([model.feature_extractor(self._values(clip)[None])[0].T for clip in clips])
        projected = model.feature_projection(heard)
        # WavLM's projection also returns its input, normalised.
        packed = projected[0] if isinstance(projected, tuple) else projected
        padded, there = pad_packed(packed, lengths)
        # Behind a clip's end lie zeros, as behind a lone clip's.
        packed = packed + model.encoder.pos_conv_embed(padded)[there]
        stable = self.model.config.do_stable_layer_norm
        packed = packed if stable else model.encoder.layer_norm(packed)
        run = self._run_wavlm if self.model.config.model_type == "wavlm" else self._run_hubert
        packed = run(packed, lengths)
        return (model.encoder.layer_norm(packed) if stable else packed), lengths

    def _values(self, clip: Tensor) -> Tensor:
        """int16 [N] -> [N] in the model's number format, as its feature extractor makes them."""
        samples = clip.float() / 32768
        if self.normalised:
            samples = (samples - samples.mean()) / (samples.var(correction=0) + 1e-7).sqrt()
        return samples.to(self.model.dtype)

    def _run_hubert(self, packed: Tensor, lengths: list[int]) -> Tensor:
        model: Any = self.model
        hidden, where = packed[None], bounds(lengths, packed.device)
        for layer in model.encoder.layers:
            hidden = layer(hidden, None, **where)
        return hidden[0]

    def _run_wavlm(self, packed: Tensor, lengths: list[int]) -> Tensor:
        # Its attention adds a bias of its own to the scores and takes no packed clips: they are padded, behind a mask.
        model: Any = self.model
        hidden, there = pad_packed(packed, lengths)
        bias = None
        for layer in model.encoder.layers:
            hidden, bias = layer(hidden, there.long(), bias)
        return hidden[there]
