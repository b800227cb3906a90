"""What a recipe's model is made of: the tensors of each part, and which of them a stage trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from blsp.estimate.families import Linear, Llm, NoFormula, Whisper, read_encoder, read_llm
from blsp.recipe import AdapterSection, ConvSection, EncoderLoraSection, LoraSection, StackMlpSection, TrainRecipe
from cluster.sharding import Weights
from shards.sample import EMOTIONS


@dataclass(frozen=True)
class Parts:
    """Sizes of everything that a clip passes through."""

    llm: Llm
    encoder: Whisper
    adapter: AdapterSection
    lora: LoraSection | None
    encoder_lora: EncoderLoraSection | None

    @property
    def tensors(self) -> dict[str, list[int]]:
        """Elements of each tensor of what a stage may train, by the part's name."""
        parts = {
            "adapter": _adapter(self.adapter, self.encoder.width, self.llm.width),
            "classifier": [len(EMOTIONS) * self.llm.width],
            "encoder": self.encoder.tensors,
        }
        for name, section, layers in (
            ("lora", self.lora, self.llm), ("encoder_lora", self.encoder_lora, self.encoder)
        ):  # fmt: skip
            if section is not None:
                linears = targeted(layers.linears, section.targets, f"model.{name}.targets")
                parts[name] = [
                    elements for linear in linears
                    for elements in (linear.before * section.rank, linear.after * section.rank)
                ] * layers.layers  # fmt: skip
        return parts


def read_parts(recipe: TrainRecipe) -> Parts:
    """Raises ValueError for a model that is not here, NoFormula for one whose sizes would have to be guessed."""
    model = recipe.model
    if not isinstance(model.adapter, ConvSection | StackMlpSection):
        raise NoFormula(
            f"model.adapter: there is no formula for {model.adapter.type!r} here (known are conv, stack_mlp); nothing "
            "is guessed: train a few steps and read the memory in the log"
        )
    llm, encoder = read_llm(model.llm, model.revision), read_encoder(model.encoder)
    return Parts(llm, encoder, model.adapter, model.lora, model.encoder_lora)


def weights(parts: Parts, recipe: TrainRecipe) -> Weights:
    """Of a run of `recipe`, as DeepSpeed gets them."""
    tensors = parts.tensors
    trained = [tensors[name] for name in recipe.optim.lr]
    frozen = list(parts.llm.tensors)
    # An encoder with LoRA of its own is frozen underneath.
    frozen += tensors["encoder"] if "encoder" not in recipe.optim.lr else []
    idle = set(tensors) - set(recipe.optim.lr) - {"encoder"}
    return Weights(
        trained=trained, frozen=frozen, uncut=parts.encoder.position_table + sum(sum(tensors[name]) for name in idle),
        bytes_each=2 if recipe.model.dtype == "bfloat16" else 4,
    )  # fmt: skip


def targeted(linears: Sequence[Linear], targets: Sequence[str], field: str) -> list[Linear]:
    """The maps of a layer that LoRA is added to. Raises ValueError for a name that none has."""
    known = {linear.name for linear in linears}
    names = {target.rpartition(".")[2] for target in targets}
    if unknown := sorted(names - known):
        raise ValueError(f"{field}: {', '.join(unknown)}: no layer here is named so; known are {', '.join(known)}")
    return [linear for linear in linears if linear.name in names]


def _adapter(section: AdapterSection, width: int, llm_width: int) -> list[int]:
    if isinstance(section, ConvSection):
        widths = [width] * len(section.kernels) + [llm_width]
        convolutions = [
            elements for (before, after), kernel in zip(pairwise(widths), section.kernels, strict=True)
            for elements in (before * 2 * after * kernel, 2 * after)
        ]  # fmt: skip
        return [*convolutions, *[llm_width * section.bottleneck] * 2, llm_width, llm_width]
    assert isinstance(section, StackMlpSection)
    stacked = width * section.stack
    return [stacked, stacked * 2 * section.hidden, section.hidden * llm_width, llm_width]
