"""What the `config.json` of the authors' checkpoint says, in our terms; what we cannot compute is refused."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import Qwen2Config, WhisperConfig

from blsp.recipe import ConvSection, LoraSection
from cluster.json_files import read_object
from shards.sample import EMOTIONS

# A linear layer of ours: theirs in the same block, and which of how many equal blocks of its rows.
LINEARS = {
    "self_attn.q_proj": ("attn.c_attn", 0, 3),
    "self_attn.k_proj": ("attn.c_attn", 1, 3),
    "self_attn.v_proj": ("attn.c_attn", 2, 3),
    "self_attn.o_proj": ("attn.c_proj", 0, 1),
    "mlp.gate_proj": ("mlp.w2", 0, 1),
    "mlp.up_proj": ("mlp.w1", 0, 1),
    "mlp.down_proj": ("mlp.c_proj", 0, 1),
}
_SCOPES: dict[str, Literal["speech", "all"]] = {"audio": "speech", "global": "all"}
_REQUIRED: Any = object()


@dataclass(frozen=True)
class AuthorsConfig:
    """All that decides which tensors there are and what they compute."""

    llm: Qwen2Config
    whisper: WhisperConfig
    adapter: ConvSection
    lora: LoraSection | None
    kl_temperature: float


class _Fields:
    """The fields of one JSON object; errors name the file and the field."""

    def __init__(self, path: Path, name: str, values: Any) -> None:
        if not isinstance(values, dict):
            raise ValueError(f"{path}: {name or 'its content'} is not an object; is this the authors' checkpoint?")
        self.path, self.name, self.values = path, name, values

    def __call__(self, field: str, kind: type, default: Any = _REQUIRED) -> Any:
        value = self.values.get(field, default)
        if value is _REQUIRED:
            raise self.error(field, "is missing; is this the authors' checkpoint?")
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise self.error(field, f"{value!r} is not of type {kind.__name__}")
        smallest = 1 if kind is int else 0
        if isinstance(value, int | float) and not smallest <= value < math.inf:
            raise self.error(field, f"{value!r} is out of range")
        return value

    def only(self, field: str, known: Any) -> None:
        """Refuse every value but `known`, which is also what a missing field means."""
        if self.values.get(field, known) != known:
            raise self.error(field, f"{self.values[field]!r} is not built; only {known!r} can be imported")

    def part(self, field: str) -> _Fields:
        return _Fields(self.path, field, self.values.get(field))

    def error(self, field: str, what: str) -> ValueError:
        return ValueError(f"{self.path}: {self.name + '.' if self.name else ''}{field} {what}")


def read_config(folder: Path) -> AuthorsConfig:
    """Raises ValueError naming file and field when one is missing, of the wrong type, or asks for what we have not."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{folder}: no config.json here; give the folder that the authors' checkpoint was downloaded to"
        )
    fields = _Fields(path, "", read_object(path))
    fields.only("adapter_type", "subsampler")
    fields.only("adapter_hidden_layers", 0)
    fields.only("num_emotions", len(EMOTIONS))
    return AuthorsConfig(
        llm=_llm(fields.part("qwen_config")),
        whisper=_whisper(fields.part("whisper_config")),
        adapter=_adapter(fields),
        lora=_lora(fields) if fields.values.get("lora_config") else None,
        kl_temperature=fields("kd_temperature", float, 2.0),
    )


def _llm(qwen: _Fields) -> Qwen2Config:
    qwen.only("rotary_pct", 1.0)
    width, heads = qwen("hidden_size", int), qwen("num_attention_heads", int)
    if heads == 0 or width % heads:
        raise qwen.error("num_attention_heads", f"{heads} does not divide hidden_size {width}")
    return Qwen2Config(
        vocab_size=qwen("vocab_size", int),
        hidden_size=width,
        # Qwen v1 counts both of its maps into the hidden layer.
        intermediate_size=qwen("intermediate_size", int) // 2,
        num_hidden_layers=qwen("num_hidden_layers", int),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        rms_norm_eps=qwen("layer_norm_epsilon", float, 1e-6),
        rope_parameters={"rope_type": "default", "rope_theta": qwen("rotary_emb_base", float, 10000.0)},
        # Beyond it Qwen v1 stretches positions and sharpens attention, which Qwen2 does not.
        max_position_embeddings=qwen("seq_length", int),
        attention_dropout=qwen("attn_dropout_prob", float, 0.0),
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def _whisper(whisper: _Fields) -> WhisperConfig:
    whisper.only("activation_function", "gelu")
    names = ("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "num_mel_bins")
    sizes = {name: whisper(name, int) for name in (*names, "max_source_positions")}
    rates = {name: whisper(name, float, 0.0) for name in ("dropout", "attention_dropout", "activation_dropout")}
    return WhisperConfig(**sizes, **rates)


def _adapter(fields: _Fields) -> ConvSection:
    listed = fields("conv_kernel_sizes", str, "5,5,5")
    if not re.fullmatch(r"\d*[13579](,\d*[13579])*", listed):
        raise fields.error("conv_kernel_sizes", f"{listed!r} is not a list of odd widths such as '5,5,5'")
    kernels = tuple(int(width) for width in listed.split(","))
    return ConvSection(bottleneck=fields("adapter_inner_dim", int), kernels=kernels)


def _lora(fields: _Fields) -> LoraSection:
    lora = fields.part("lora_config")
    for field, known in (("bias", "none"), ("fan_in_fan_out", False), ("layers_to_transform", None),
                         ("modules_to_save", None)):  # fmt: skip
        lora.only(field, known)
    scope = fields("lora_scope", str)
    if scope not in _SCOPES:
        raise fields.error("lora_scope", f"{scope!r} is not built; only {' and '.join(_SCOPES)} can be imported")
    wanted = lora.values.get("target_modules")
    if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
        raise lora.error("target_modules", f"{wanted!r} is not a list of names")
    targets = [
        path.rpartition(".")[2]
        for path, (theirs, _, _) in LINEARS.items()
        if any(f"transformer.h.0.{theirs}".endswith(name) for name in wanted)
    ]
    if not targets:
        raise lora.error("target_modules", f"{wanted} names no linear layer of Qwen v1")
    return LoraSection(
        rank=lora("r", int), alpha=lora("lora_alpha", float), dropout=lora("lora_dropout", float, 0.0),
        scope=_SCOPES[scope], targets=tuple(targets),
    )  # fmt: skip
