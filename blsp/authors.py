"""The authors' released checkpoint (cwang621/blsp-emo) becomes a run folder of ours.

Their names stand here beside ours. Qwen v1 is Qwen2 under other names: one fused map for query, key and value, w2 for
the gate and w1 for the way up. Every tensor of theirs has a place, and every place of ours a tensor, or nothing is
written.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, Qwen2ForCausalLM, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from blsp.adapter import ConvAdapter
from blsp.export import write_export
from blsp.lora import add_lora
from blsp.model import embedding_scale
from blsp.provenance import frozen_weights
from blsp.qwen_tokenizer import RANKS, qwen_tokenizer
from blsp.recipe import ModelSection, StageSection
from blsp.released_config import LINEARS, AuthorsConfig, read_config
from blsp.weight_files import StoredTensor, stored_tensors
from cluster.files import new_folder
from shards.prompts import ChatTemplate
from shards.sample import EMOTIONS
from shards.writers.fingerprint import model_fingerprint

_LLM = {
    "model.embed_tokens.weight": "transformer.wte.weight",
    "model.norm.weight": "transformer.ln_f.weight",
    "lm_head.weight": "lm_head.weight",
}
_NORMS = {"input_layernorm": "ln_1", "post_attention_layernorm": "ln_2"}
_ADAPTER = {"convs.": "subsampler.conv_layers.", "fc1.": "fc1.", "fc2.": "fc2.", "norm.": "speech_ln."}
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja",
)  # fmt: skip
_NAMED_PROBLEMS = 8  # of each kind


@dataclass(frozen=True)
class _Source:
    """Where a tensor of ours comes from: the `part`-th of `parts` equal blocks of rows of theirs."""

    name: str
    part: int = 0
    parts: int = 1

    def shape(self, ours: torch.Size) -> tuple[int, ...]:
        """The shape that theirs must have."""
        return (self.parts * ours[0], *ours[1:])

    def read(self, stored: Mapping[str, StoredTensor]) -> Tensor:
        """A tensor of its own, so that no two of ours share memory and none keeps a whole file mapped."""
        return stored[self.name].read().chunk(self.parts)[self.part].clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class Imported:
    """What an import found and wrote."""

    num_tensors: int
    num_parameters: int
    model: ModelSection
    has_tokenizer: bool


def import_authors(source: Path, out: Path, tokenizer: Path | None = None) -> Imported:
    """Write `out/llm` and `out/encoder` (Hugging Face folders) and `out/export`, as a finished run has it.

    `tokenizer` is a folder with the LLM's tokenizer files, where `source` has none. Holds the weights once in memory,
    beside the files, which are mapped.
    Raises ValueError when `out` holds something, when the configuration or a file asks for what we have not, and for
    any tensor that is missing, unexpected or of another shape, by name.
    """
    config, stored = read_config(source), stored_tensors(source)
    llm, encoder, parts = _skeleton(config)
    wrapped = any(name.startswith("qwen_model.model.") for name in stored)
    prefix = "qwen_model.model." if wrapped else "qwen_model."
    sources = {
        "llm": {name: _llm_source(name, prefix) for name in llm.state_dict()},
        "encoder": {name: _Source(f"whisper_model.{name}") for name in encoder.state_dict()},
        **{part: {n: _part_source(part, n, prefix) for n in module.state_dict()} for part, module in parts.items()},
    }
    wanted = {
        origin.name: origin.shape(tensor.shape)
        for module, origins in zip((llm, encoder, *parts.values()), sources.values(), strict=True)
        for origin, tensor in zip(origins.values(), module.state_dict().values(), strict=True)
    }
    _refuse_unaccounted(source, wanted, stored)
    with new_folder(out) as folder:
        has_tokenizer = _carry_tokenizer(tokenizer or source, folder / "llm", llm)
        if tokenizer is not None and not has_tokenizer:
            raise ValueError(f"{tokenizer}: no tokenizer files here; expected {RANKS} or tokenizer.json")
        _fill(llm, sources["llm"], stored)
        llm.save_pretrained(folder / "llm")
        _fill(encoder, sources["encoder"], stored)
        encoder.save_pretrained(folder / "encoder")
        WhisperFeatureExtractor(feature_size=config.whisper.num_mel_bins).save_pretrained(folder / "encoder")
        weights = {f"{part}.{name}": origin.read(stored) for part in parts for name, origin in sources[part].items()}
        # Our classifier sees the adapter's output divided by this.
        scale = embedding_scale(llm.model.embed_tokens.weight)
        classifier = weights["classifier.weight"]
        weights["classifier.weight"] = (classifier.float() * scale).to(classifier.dtype)
        section = _model_section(config, out, stored[f"{prefix}transformer.wte.weight"].dtype)
        frozen = frozen_weights(str(folder / "llm"), None, str(folder / "encoder"))
        write_export(
            folder / "export", weights, model=section, parts=sorted(parts), stage=_stage(config), frozen=frozen,
            imported_from=model_fingerprint(str(source), None),
        )  # fmt: skip
    num_parameters = sum(torch.Size(tensor.shape).numel() for tensor in stored.values())
    return Imported(len(stored), num_parameters, section, has_tokenizer)


def _skeleton(config: AuthorsConfig) -> tuple[Qwen2ForCausalLM, WhisperEncoder, dict[str, nn.Module]]:
    """Our modules for this configuration, without memory for their weights."""
    with torch.device("meta"):
        llm, encoder = Qwen2ForCausalLM(config.llm), WhisperEncoder(config.whisper)
        width = config.llm.hidden_size
        parts: dict[str, nn.Module] = {
            "adapter": ConvAdapter(config.whisper.d_model, width, config.adapter.bottleneck, config.adapter.kernels),
            "classifier": nn.Linear(width, len(EMOTIONS), bias=False),
        }
        if config.lora is not None:
            lora = config.lora
            parts["lora"], _ = add_lora(
                Qwen2ForCausalLM(config.llm), rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout,
                targets=list(lora.targets), scope=lora.scope,
            )  # fmt: skip
    return llm, encoder, parts


def _llm_source(name: str, prefix: str) -> _Source:
    if name in _LLM:
        return _Source(prefix + _LLM[name])
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    assert match is not None, name
    layer, path, kind = match.groups()
    block = f"{prefix}transformer.h.{layer}"
    if path in _NORMS:
        return _Source(f"{block}.{_NORMS[path]}.{kind}")
    theirs, part, parts = LINEARS[path]
    return _Source(f"{block}.{theirs}.{kind}", part, parts)


def _part_source(part: str, name: str, prefix: str) -> _Source:
    if part == "classifier":
        return _Source("hidden2emotion.weight")
    if part == "adapter":
        ours = next(start for start in _ADAPTER if name.startswith(start))
        return _Source("adapter." + _ADAPTER[ours] + name.removeprefix(ours))
    match = re.fullmatch(r"model/layers/(\d+)/(.+)\.([AB])\.weight", name)
    assert match is not None, name
    layer, path, side = match.groups()
    theirs, row_block, row_blocks = LINEARS[path.replace("/", ".")]
    stem = f"{prefix}transformer.h.{layer}.{theirs}.lora_{side}.default.weight"
    # Query, key and value share A and have each a third of B.
    return _Source(stem) if side == "A" else _Source(stem, row_block, row_blocks)


def _refuse_unaccounted(source: Path, wanted: dict[str, tuple[int, ...]], stored: dict[str, StoredTensor]) -> None:
    kinds = [
        [f"missing {name}" for name in wanted if name not in stored],
        [f"unexpected {name}" for name in stored if name not in wanted],
        [
            f"{name} is {list(stored[name].shape)}, not {list(shape)}"
            for name, shape in wanted.items()
            if name in stored and stored[name].shape != shape
        ],
    ]
    if any(kinds):
        named = [problem for kind in kinds for problem in kind[:_NAMED_PROBLEMS]]
        left_out = sum(len(kind) for kind in kinds) - len(named)
        raise ValueError(
            f"{source}: the weights are not those that its config.json describes, and nothing was written: "
            + "; ".join([*named, f"and {left_out} more"] if left_out else named)
        )


def _fill(module: nn.Module, origins: dict[str, _Source], stored: Mapping[str, StoredTensor]) -> None:
    module.load_state_dict({name: origin.read(stored) for name, origin in origins.items()}, assign=True)


def _carry_tokenizer(source: Path, llm_folder: Path, llm: Qwen2ForCausalLM) -> bool:
    """Copy or translate the tokenizer files of `source`, and try them; False when it has none."""
    llm.config.save_pretrained(llm_folder)  # transformers asks it which tokenizer there is
    if (source / RANKS).is_file():
        qwen_tokenizer(source / RANKS).save_pretrained(llm_folder)
    else:
        for name in _TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, llm_folder / name)
    if len([*llm_folder.iterdir()]) == 1:
        return False
    try:
        tokenizer = ChatTemplate(AutoTokenizer.from_pretrained(llm_folder, trust_remote_code=False)).tokenizer
    except (ValueError, OSError, ImportError) as error:
        why = " ".join(str(error).replace(str(llm_folder), str(source)).split())
        raise ValueError(
            f"{source}: its tokenizer files cannot be used without code that ships beside them: {why}"
        ) from error
    if len(tokenizer) > llm.config.vocab_size:
        raise ValueError(
            f"{source}: its tokenizer has {len(tokenizer)} tokens, the LLM {llm.config.vocab_size}; it is another's"
        )
    for settings in (llm.config, llm.generation_config):
        settings.eos_token_id, settings.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    return True


def _model_section(config: AuthorsConfig, out: Path, dtype: torch.dtype) -> ModelSection:
    return ModelSection(
        llm=str((out / "llm").absolute()), encoder=str((out / "encoder").absolute()), audio_window="30s",
        dtype="float32" if dtype == torch.float32 else "bfloat16", adapter=config.adapter, lora=config.lora,
    )  # fmt: skip


def _stage(config: AuthorsConfig) -> StageSection:
    """The stage that their scripts train into such a checkpoint, as a recipe says it."""
    if config.lora is None:
        return StageSection(
            train=("adapter",), losses={"kl": 1.0}, kl_temperature=config.kl_temperature, kl_shift="authors",
            prompts={"continue": 1.0},
        )  # fmt: skip
    return StageSection(
        train=("adapter", "lora", "classifier"), losses={"ce": 1.0, "emotion": 1.0},
        kl_temperature=config.kl_temperature, prompts={"continue_tone": 1.0},
    )  # fmt: skip
