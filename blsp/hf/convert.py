"""From a model of ours to transformers' form of it (`blsp export`), and back (`blsp chat`, `blsp eval`)."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoTokenizer

from blsp.encoder import Encoder
from blsp.generation import greedy
from blsp.hf.configuration import BlspEmoConfig
from blsp.hf.modeling import BlspEmoForConditionalGeneration
from blsp.hf.processing import BlspEmoProcessor
from blsp.lora import merge_lora
from blsp.model import SpeechLM
from blsp.provenance import versions
from blsp.wave_encoder import WaveEncoder
from cluster.files import new_folder
from cluster.json_files import read_object
from shards.foreign_models import in_a_sentence, refuse_kernels
from shards.prompts import ChatTemplate
from shards.sample import EMOTIONS

_CHAT_TOKENS = 512  # of an answer, where the caller of `generate` names no number


def export_run(
    run: Path, out: Path, *, step: str = "last", classifier: bool = True, merge: bool = False
) -> BlspEmoConfig:
    """Write a run as one folder of safetensors that transformers loads, with its model card: as it ended, or what its
    checkpoint of `step` holds, a number or `best`.

    Raises ValueError when `out` holds something, when the run has no export yet or no such checkpoint, without a
    tokenizer, and for a merge of LoRA that would not be the same model.
    """
    with new_folder(out) as folder:
        model = _loaded(run, step, folder)
        if merge:
            _merge(model, run)
        config = config_of(model, classifier and "classifier" in model.exported_parts, merged=merge)
        hf = as_transformers(model, config)
        hf.save_pretrained(folder)
        BlspEmoProcessor.of(config, model.template.tokenizer).save_pretrained(folder)
    return config


def _loaded(run: Path, step: str, scratch: Path) -> SpeechLM:
    if step == "last":
        return SpeechLM.load(run, torch.device("cpu"))
    from blsp.handover import checkpoint_at, write_as_export  # DeepSpeed reads its files

    with TemporaryDirectory(dir=scratch) as made:
        write_as_export(checkpoint_at(run, step), Path(made))
        return SpeechLM.load(Path(made), torch.device("cpu"))


def _merge(model: SpeechLM, run: Path) -> None:
    lora = model.config.lora
    if lora is None:
        raise ValueError(f"{run}: has no LoRA to merge; leave --merge-lora out")
    if lora.scope == "speech":
        raise ValueError(
            f"{run}: its LoRA has the scope 'speech': it acts where speech stands and nowhere else, and merged into "
            "the weights it would act on every word; leave --merge-lora out, or train with model.lora.scope=all"
        )
    merge_lora(model.llm)
    model.config = model.config.model_copy(update={"lora": None})


def as_transformers(model: SpeechLM, config: BlspEmoConfig) -> BlspEmoForConditionalGeneration:
    """The same tensors under transformers' names, to be saved; nothing is copied."""
    with torch.device("meta"):
        hf = BlspEmoForConditionalGeneration(config)
    named = {"language_model": model.llm, "audio_encoder": model.encoder.pretrained, "adapter": model.parts["adapter"]}
    if config.emotions is not None:
        named["classifier"] = model.parts["classifier"]
    state = {f"{part}.{name}": value for part, module in named.items() for name, value in module.state_dict().items()}
    hf.load_state_dict(state, assign=True)
    hf.generation_config = greedy(_CHAT_TOKENS, model.end_of_turn_id)
    return hf


def config_of(model: SpeechLM, classifier: bool, merged: bool = False) -> BlspEmoConfig:
    """What `BlspEmoForConditionalGeneration` needs to be built again, and what its card tells."""
    section = model.config.model_dump(mode="json")
    encoder: Encoder = model.encoder
    return BlspEmoConfig(
        text_config=model.llm.config.to_dict(), audio_config=encoder.pretrained.config.to_dict(),
        dtype=str(model.llm.dtype).removeprefix("torch."),
        **{name: section[name] for name in ("adapter", "lora", "encoder_lora", "audio_window")},
        normalise_audio=isinstance(encoder, WaveEncoder) and encoder.normalised,
        embedding_scale=model.scale,
        emotions=list(EMOTIONS) if classifier else None,
        training={
            "stages": model.history, "frozen": model.frozen, "merged": merged, "versions": versions(),
        },
    )  # fmt: skip


def is_transformers_folder(folder: Path) -> bool:
    """Whether `blsp export` or `save_pretrained` wrote it."""
    path = folder / "config.json"
    if not path.is_file():
        return False
    return read_object(path).get("model_type") == BlspEmoConfig.model_type


def load_model(folder: Path, device: torch.device | None = None) -> SpeechLM:
    """The model of a run folder, or of a folder that `blsp export` wrote, ready to answer."""
    if not is_transformers_folder(folder):
        return SpeechLM.load(folder, device)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with in_a_sentence(str(folder), "the model"):
        refuse_kernels(str(folder), None, "the model")
        hf = BlspEmoForConditionalGeneration.from_pretrained(folder, device_map={"": device})
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model: SpeechLM = hf.eval().speech
    model.use_template(ChatTemplate(tokenizer))
    training = hf.config.training or {}
    model.exported_parts = {"adapter"} | ({"classifier"} if hf.config.emotions else set())
    model.history, model.frozen = training.get("stages", []), training.get("frozen", {})
    return model
