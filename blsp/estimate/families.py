"""Sizes of pretrained models by what their `config.json` says, for the families that there is a formula for.

Each tensor's number of elements, in the order in which transformers registers them, and what arithmetic needs besides.
Where weights lie beside the configuration, their safetensors headers must agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from blsp.estimate.pretrained_files import num_stored, pretrained_folder
from cluster.json_files import read_object

_LLMS = ("llama", "mistral", "qwen2", "qwen3")
_HEAD_WIDTH = {"qwen3": 128}  # where a configuration says nothing of it


class NoFormula(ValueError):
    """Sizes that would have to be guessed."""


@dataclass(frozen=True)
class Linear:
    """A linear map of a layer, which LoRA may be added to."""

    name: str
    before: int
    after: int
    bias: bool = False

    @property
    def tensors(self) -> list[int]:
        """Elements of its weight, and of its bias if it has one."""
        return [self.before * self.after, *([self.after] if self.bias else [])]


@dataclass(frozen=True)
class Llm:
    """A decoder of gated layers with RMSNorm and rotary positions."""

    family: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    inner: int
    vocabulary: int
    tied: bool
    biased: frozenset[str]  # names of the linear maps that have one
    qk_norm: bool

    @property
    def linears(self) -> list[Linear]:
        """Those of one layer."""
        attending, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        sizes = {
            "q_proj": (self.width, attending), "k_proj": (self.width, keys), "v_proj": (self.width, keys),
            "o_proj": (attending, self.width), "gate_proj": (self.width, self.inner),
            "up_proj": (self.width, self.inner), "down_proj": (self.inner, self.width),
        }  # fmt: skip
        return [Linear(name, *size, name in self.biased) for name, size in sizes.items()]

    @property
    def layer(self) -> list[int]:
        """Elements of each tensor of one layer."""
        norms = [self.width, self.width, *([self.head_width] * 2 if self.qk_norm else [])]
        return [elements for linear in self.linears for elements in linear.tensors] + norms

    @property
    def embeddings(self) -> int:
        """Elements of the table, and of the head where it is not the same."""
        return self.vocabulary * self.width

    @property
    def tensors(self) -> list[int]:
        """Elements of each of its tensors."""
        return [self.embeddings, *self.layer * self.layers, self.width, *([] if self.tied else [self.embeddings])]


@dataclass(frozen=True)
class Whisper:
    """A Whisper's encoder."""

    width: int
    layers: int
    heads: int
    inner: int
    mel_bins: int
    max_positions: int

    @property
    def linears(self) -> list[Linear]:
        """Those of one layer."""
        square = {"k_proj": False, "v_proj": True, "q_proj": True, "out_proj": True}
        attention = [Linear(name, self.width, self.width, bias) for name, bias in square.items()]
        return [
            *attention, Linear("fc1", self.width, self.inner, True), Linear("fc2", self.inner, self.width, True)
        ]  # fmt: skip

    @property
    def layer(self) -> list[int]:
        """Elements of each tensor of one layer."""
        norm = [self.width, self.width]
        *attention, fc1, fc2 = (linear.tensors for linear in self.linears)
        return [*chain.from_iterable(attention), *norm, *fc1, *fc2, *norm]

    @property
    def tensors(self) -> list[int]:
        """Elements of each of its tensors that can learn."""
        convolutions = [3 * self.mel_bins * self.width, self.width, 3 * self.width * self.width, self.width]
        return [*convolutions, *self.layer * self.layers, self.width, self.width]

    @property
    def position_table(self) -> int:
        """Elements of the fixed table that nothing trains or cuts."""
        return self.max_positions * self.width


class _Fields:
    """Of one config.json; errors name file and field."""

    def __init__(self, path: Path) -> None:
        self.path, self._values = path, read_object(path)

    def size(self, name: str, default: int | None = None) -> int:
        """A whole number above 0."""
        value = self._values.get(name)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise ValueError(f"{self.path}: {name} is {value!r}, not a whole number above 0; is the file whole?")
        return value

    def flag(self, name: str) -> bool:
        """False where it is missing, as in transformers."""
        return self._values.get(name) is True

    def text(self, name: str) -> str:
        """What is written there."""
        return str(self._values.get(name))

    def refuse_fewer_bits(self) -> None:
        """Quantized weights are of other sizes than their numbers say."""
        if self._values.get("quantization_config") is not None:
            raise NoFormula(
                f"{self.path}: has a quantization_config, and there is no formula for weights in fewer bits here; "
                "nothing is guessed: name the model in bfloat16, or train a few steps and read the memory in the log"
            )


def read_llm(name: str, revision: str | None, field: str = "model.llm") -> Llm:
    """`field` of a recipe named it. Raises ValueError for one that is not here, of another family, quantized, or whose
    weights are of other sizes."""
    folder = pretrained_folder(name, field, revision)
    fields = _Fields(folder / "config.json")
    fields.refuse_fewer_bits()
    family = fields.text("model_type")
    if family not in _LLMS:
        raise NoFormula(
            f"{field}: {name} is of the family {family!r}, for which there is no formula here (known are "
            f"{', '.join(_LLMS)}); nothing is guessed: train a few steps and read the memory in the log"
        )
    heads, width = fields.size("num_attention_heads"), fields.size("hidden_size")
    attention = {"q_proj", "k_proj", "v_proj"} if family == "qwen2" else set()
    attention |= (
        {"q_proj", "k_proj", "v_proj", "o_proj"} if fields.flag("attention_bias") and family != "mistral" else set()
    )
    mlp = {"gate_proj", "up_proj", "down_proj"} if fields.flag("mlp_bias") and family == "llama" else set()
    llm = Llm(
        family=family, width=width, layers=fields.size("num_hidden_layers"), heads=heads,
        kv_heads=fields.size("num_key_value_heads", heads),
        head_width=fields.size("head_dim", _HEAD_WIDTH.get(family, width // heads)),
        inner=fields.size("intermediate_size"), vocabulary=fields.size("vocab_size"),
        tied=fields.flag("tie_word_embeddings"), biased=frozenset(attention | mlp), qk_norm=family == "qwen3",
    )  # fmt: skip
    # A tied head may be stored once more.
    also = llm.embeddings if llm.tied else 0
    _refuse_other_sizes(folder, sum(llm.tensors), also, lambda tensor: not tensor.endswith("rotary_emb.inv_freq"))
    return llm


def read_encoder(name: str) -> Whisper:
    """Raises ValueError as `read_llm` does."""
    folder = pretrained_folder(name, "model.encoder", None)
    fields = _Fields(folder / "config.json")
    fields.refuse_fewer_bits()
    family = fields.text("model_type")
    if family != "whisper":
        raise NoFormula(
            f"model.encoder: {name} is of the family {family!r}, for which there is no formula here (only whisper has "
            "one); nothing is guessed: train a few steps and read the memory in the log"
        )
    encoder = Whisper(
        width=fields.size("d_model"), layers=fields.size("encoder_layers"),
        heads=fields.size("encoder_attention_heads"), inner=fields.size("encoder_ffn_dim"),
        mel_bins=fields.size("num_mel_bins", 80), max_positions=fields.size("max_source_positions", 1500),
    )  # fmt: skip
    others = ("decoder.", "model.decoder.", "proj_out.")
    _refuse_other_sizes(
        folder, sum(encoder.tensors) + encoder.position_table, 0, lambda tensor: not tensor.startswith(others)
    )
    return encoder


def _refuse_other_sizes(folder: Path, by_formula: int, also: int, counts: Callable[[str], bool]) -> None:
    stored = num_stored(folder, counts)
    if stored is not None and stored not in (by_formula, by_formula + also):
        raise NoFormula(
            f"{folder}: config.json means {by_formula:,} weights, but the files beside it hold {stored:,}; is this "
            "another model's config.json, or a download that is not complete?"
        )
