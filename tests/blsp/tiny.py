"""What training needs, tiny and made on the spot: clips, a shard set without Ray, a Whisper, recipes."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from transformers import (
    HubertConfig,
    HubertModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from blsp.recipe import ModelSection, StageSection
from shards.corpora.build import build_manifest
from shards.pipeline import run as pipeline
from shards.pipeline.answers import answer
from shards.pipeline.job import ShardJob
from shards.pipeline.tasks import Commit, Task, write_task
from shards.sample import EMOTIONS, Continuation
from shards.sets.store import open_store
from shards.sets.teacher import TeacherSpec
from shards.targets.filters import Filters
from shards.writers.protocol import Request, Writer

CPU = torch.device("cpu")
LORA = {"rank": 4, "alpha": 8, "dropout": 0, "targets": ["q_proj", "v_proj"]}


def clip(num_samples: int, seed: int = 0) -> NDArray[np.int16]:
    """A tone of its own pitch in some noise."""
    random = np.random.default_rng(seed)
    tone = np.sin(2 * np.pi * random.uniform(100, 800) * np.arange(num_samples) / 16000)
    return (8000 * tone + 500 * random.normal(size=num_samples)).astype(np.int16)


def whisper_config(**changes: int) -> WhisperConfig:
    """3 s of speech at most, unless changed."""
    sizes = {
        "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_layers": 1,
        "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "vocab_size": 60, "max_target_positions": 20,
        "max_source_positions": 150, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "decoder_start_token_id": 1,
    }  # fmt: skip
    return WhisperConfig(**{**sizes, **changes})


def make_encoder(folder: Path, **changes: int) -> Path:
    """A Whisper encoder of random weights, as `save_pretrained` writes it."""
    torch.manual_seed(1)
    WhisperEncoder(whisper_config(**changes)).save_pretrained(folder)
    return folder


WAVE_SIZES: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "conv_dim": (8, 8, 8, 8, 8, 8, 8), "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip


def make_wave_encoder(folder: Path, config: HubertConfig | WavLMConfig, normalised: bool = True) -> Path:
    """A HuBERT or WavLM of random weights with its feature extractor, as `save_pretrained` writes them."""
    torch.manual_seed(1)
    model = HubertModel(config) if isinstance(config, HubertConfig) else WavLMModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=normalised).save_pretrained(folder)
    return folder


def make_loud_llm(tokenizer: PreTrainedTokenizerFast, folder: Path, tied: bool = False) -> Path:
    """A Qwen2 of large random weights: its attention looks somewhere, its logits differ by about 5.
    With `tied` embeddings they are the head too."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=tied, initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Echo:
    """A writer that continues every text with itself and with the label it was told."""

    name = "echo"
    template = None

    def write(self, asked: Sequence[Request]) -> list[Continuation]:
        """One continuation per request."""
        return [
            Continuation(prompt=request.prompt, text=f"and {request.emotion} {request.text}", finished=True, writer="e")
            for request in asked
        ]


def make_shards(
    root: Path,
    prompt: str,
    num_clips: int,
    unlabelled: int = 0,
    llm: Path | None = None,
    teacher: TeacherSpec | None = None,
    corpus: str = "clips",
    same_words: int = 1,
) -> Path:
    """A shard set of clips of 0.3 to 1 s with all five emotions, the first ones without; written by the pipeline's own
    tasks but not by Ray. With an `llm` that one continues the texts, and says what it predicts."""
    random = np.random.default_rng(7)
    root.mkdir(parents=True)
    lines = []
    for i in range(num_clips):
        soundfile.write(root / f"{i:02d}.wav", clip(int(random.uniform(4800, 16000)), i), 16000)
        text = f"Sentence {i // same_words}" + " and so on" * (i // same_words % 3)
        label = {"emotion": EMOTIONS[i % 5], "corpus": corpus} if i >= unlabelled else {"corpus": corpus}
        lines.append(json.dumps({"audio": f"{i:02d}.wav", "text": text, **label}))
    (root / "clips.jsonl").write_text("\n".join(lines))
    build_manifest("jsonl", root / "clips.jsonl", root / "manifest.jsonl", text="raw")
    return shards_of(root / "manifest.jsonl", prompt, llm, teacher)


def shards_of(manifest: Path, prompt: str, llm: Path | None = None, teacher: TeacherSpec | None = None) -> Path:
    """The shard set of a manifest, beside it."""
    root = manifest.parent
    if llm is None:
        (root / "llm").mkdir()
        (root / "llm" / "config.json").write_text("{}")

    def here(
        job: ShardJob, tasks: Sequence[Task], load_writer: Callable[[ShardJob], Writer]
    ) -> Generator[Commit | None, None, None]:
        writer, read_clips, store = load_writer(job), job.clip_reader(), open_store(job.out)
        for task in tasks:
            clips = read_clips(task)
            answers = answer(writer, clips, job.prompt, job.teacher, job.gain)
            yield write_task(store, task, clips, job.prompt, answers, filters=job.filters)

    job = ShardJob(
        manifests=(manifest,), out=root / "shards", llm=str(llm or root / "llm"), prompt=prompt,
        clips_per_shard=8, cpu_actors=1, max_new_tokens=12, teacher=teacher,
        filters=Filters(drop=()),  # an echo says again what was said
    )  # fmt: skip
    with mock.patch.object(pipeline, "run_tasks", here):
        load_writer: Callable[[ShardJob], Writer] = pipeline.load_writer_of if llm else lambda job: Echo()
        pipeline.write_shards(job, lambda progress: None, load_writer)
    return Path(job.out)


def model_section(llm: Path, encoder: Path, **changes: Any) -> ModelSection:
    """In float32 with an exact window, unless changed."""
    values: dict[str, Any] = {
        "llm": str(llm), "encoder": str(encoder), "audio_window": "exact", "dtype": "float32",
        "adapter": {"bottleneck": 8},
    }  # fmt: skip
    return ModelSection.model_validate({**values, **changes})


STAGE_1 = StageSection.model_validate({"train": ["adapter"], "losses": {"kl": 1}, "prompts": {"continue": 1}})
STAGE_2 = StageSection.model_validate(
    {
        "train": ["adapter", "encoder", "lora", "classifier"],
        "losses": {"ce": 1, "emotion": 0.5},
        "prompts": {"continue_tone": 1},
    }
)
# Every part and every loss that has a gradient of its own.
ALL_AT_ONCE = StageSection.model_validate(
    {
        "train": ["adapter", "encoder", "lora", "classifier"],
        "losses": {"kl": 1, "ce": 0.3, "emotion": 0.5},
        "prompts": {"continue": 1},
    }
)
