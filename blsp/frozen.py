"""The frozen LLM of a job: read once, by rank 0, and then whole on every rank or one share of it on each.

`resident`: every rank has all of it, and no step gathers a frozen weight. `partitioned`: ZeRO-3 cuts it like what
trains, for an LLM that no card can hold; each pass then gathers it layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from blsp.encoder import new_encoder
from blsp.estimate.families import NoFormula
from blsp.estimate.job import job
from blsp.estimate.parts import read_parts
from blsp.estimate.workload import read_workload
from blsp.features import AudioWindow
from blsp.model import embedding_scale, load_llm
from blsp.packing import attention_implementation
from blsp.recipe import ModelSection, TrainRecipe
from blsp.together import together
from cluster.forecast import memory
from cluster.sharding import Zero

# Of a card's memory, for a model that there is no formula for: the rest is for activations and all else.
_SHARE_FOR_STATES = 0.6
_BYTES_PER_TRAINED = 18  # bfloat16 weight, float32 sum of gradients, float32 weight and two moments


def read_once(config: ModelSection, device: torch.device, partitioned: dict[str, Any] | None) -> tuple[Any, float]:
    """The LLM and the scale of its embeddings; every rank calls it, and only rank 0 reads the files.

    Whole on `device`, or cut into shares when `partitioned` is given: DeepSpeed's configuration. Errors of rank 0 are
    raised on all.
    """
    sources: list[PreTrainedModel] = []  # on rank 0

    def read() -> tuple[Any, float]:
        # What is to be cut is read into the host's memory: the card could not hold it.
        source = load_llm(config, torch.device("cpu") if partitioned else device)
        weight = source.get_input_embeddings().weight
        assert isinstance(weight, Tensor)
        sources.append(source)
        return source.config, embedding_scale(weight)

    llm_config, scale = together(read)
    if partitioned is not None:
        return _partitioned(sources[0] if sources else None, llm_config, config, device, partitioned), scale
    llm = sources[0] if sources else _empty(llm_config, config, device)
    for tensor in _stored(llm).values():
        dist.broadcast(tensor.data, src=0)
    return llm, scale


def _empty(llm_config: Any, config: ModelSection, device: torch.device) -> PreTrainedModel:
    """An LLM whose weights are still to come."""
    dtype = getattr(torch, config.dtype)
    with device, no_init_weights():
        llm: PreTrainedModel = AutoModelForCausalLM.from_config(
            llm_config, dtype=dtype, attn_implementation=attention_implementation(device, dtype)
        )
        # Left out with the new weights. Every rank must hold a tied weight once, or the broadcasts do not match.
        llm.tie_weights()
    return llm


def _stored(llm: nn.Module) -> dict[str, Tensor]:
    """Parameters, each once, and the buffers that a file holds."""
    state = llm.state_dict(keep_vars=True)
    seen: dict[int, str] = {}
    for name, tensor in state.items():
        seen.setdefault(id(tensor), name)
    return {name: state[name] for name in seen.values()}


def _partitioned(
    source: PreTrainedModel | None,
    llm_config: Any,
    config: ModelSection,
    device: torch.device,
    settings: dict[str, Any],
) -> PreTrainedModel:
    # Its memory-efficient linear layer would stay in torch's place for good.
    with deepspeed.zero.Init(config_dict_or_path=settings, mem_efficient_linear=False):
        llm = _empty(llm_config, config, device)
    given = _stored(source) if source is not None else {}
    for name, weight in llm.named_parameters():
        with deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
            if source is not None:
                weight.data.copy_(given[name])
    # zero.Init has rounded what is no weight, the rotary frequencies, to the type of the weights.
    shared: list[dict[str, Tensor]] = [dict(source.named_buffers()) if source is not None else {}]
    dist.broadcast_object_list(shared, src=0)
    for name, value in shared[0].items():
        owner, _, last = name.rpartition(".")
        setattr(llm.get_submodule(owner), last, value.to(device))
    return llm


@contextmanager
def gathered(parts: Sequence[nn.Module]) -> Iterator[None]:
    """All weights of `parts` as they are, wherever their shares lie; every rank enters it."""
    with deepspeed.zero.GatheredParameters([p for part in parts for p in part.parameters() if hasattr(p, "ds_id")]):
        yield


def is_partitioned(recipe: TrainRecipe, device: torch.device, announce: Callable[[str], object]) -> bool:
    """What `engine.frozen` comes to on this device; `auto` says why in one line."""
    if recipe.engine.frozen != "auto":
        return recipe.engine.frozen == "partitioned"
    world = dist.get_world_size()
    if device.type != "cuda" or world == 1 or recipe.engine.zero_stage < 3:
        return False
    needed = together(lambda: _bytes_if_resident(recipe, world))
    cards: list[int] = [0] * world
    dist.all_gather_object(cards, torch.cuda.get_device_properties(device).total_memory)
    card = min(cards)
    partitioned = needed > card
    announce(
        f"frozen: {'partitioned' if partitioned else 'resident'}, because with frozen weights on every GPU each would "
        f"need {needed / 1e9:.0f} GB, and the smallest has {card / 1e9:.0f} GB; engine.frozen decides otherwise"
    )
    return partitioned


def _bytes_if_resident(recipe: TrainRecipe, world: int) -> float:
    """What each GPU must have for frozen weights to stay whole: the arithmetic of `blsp estimate`."""
    section = recipe.model
    for name, revision in ((section.llm, section.revision), (section.encoder, None)):
        AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)  # brought here if need be
    try:
        parts = read_parts(recipe)
        made = job(recipe, parts, read_workload(recipe, parts))
    except NoFormula:
        frozen, trained = _weights(recipe)
        each = 2 if section.dtype == "bfloat16" else 4
        return (frozen * each + trained * _BYTES_PER_TRAINED / world) / _SHARE_FOR_STATES
    return memory(made, Zero(3, world)).total


def _weights(recipe: TrainRecipe) -> tuple[int, int]:
    """Frozen weights, and those of the encoder if it trains: adapter and LoRA are small beside them."""
    section, dtype = recipe.model, getattr(torch, recipe.model.dtype)
    with torch.device("meta"), no_init_weights():
        llm = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(section.llm, revision=section.revision, trust_remote_code=False), dtype=dtype
        )
        encoder = new_encoder(
            AutoConfig.from_pretrained(section.encoder, trust_remote_code=False), AudioWindow(section.audio_window),
            True, dtype, "eager",
        )  # fmt: skip
    heard = sum(p.numel() for p in encoder.pretrained.parameters())
    trained = heard if "encoder" in recipe.stage.train else 0
    return sum(p.numel() for p in llm.parameters()) + heard - trained, trained
