"""What the step is measured on: a model of random weights, clips of noise with words, and batches as training packs
them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from blsp.encoder import SpeechEncoder
from blsp.features import AudioWindow
from blsp.model import SpeechLM
from blsp.packing import attention_implementation
from blsp.recipe import ModelSection, StageSection
from blsp.standins import train_tokenizer
from shards.audio import SAMPLE_RATE
from shards.batches.collate import Batch, Collator
from shards.miniature.world import split_sentences
from shards.prompts import ChatTemplate
from shards.sample import EMOTIONS, Continuation, Utterance
from shards.sets.cached_teacher import CachedTeacher
from shards.sets.shard_set import Sample
from shards.sets.teacher import TeacherSpec
from shards.writers.with_transformers import kept_predictions
from tests.bench.train.shapes import Shapes

TOP_K = 32
LORA_RANK = 16
_WORDS_PER_S = 3.0
_LONGEST_RESPONSE = 48
_CLIPS_AT_ONCE = 16  # of a teacher's logits, which are large

STAGE_1 = StageSection.model_validate({"train": ["adapter"], "losses": {"kl": 1}, "prompts": {"continue": 1}})
CACHED = STAGE_1.model_copy(update={"teacher": "cached"})
STAGE_2 = StageSection.model_validate(
    {
        "train": ["adapter", "encoder", "lora", "classifier"],
        "losses": {"ce": 1, "emotion": 1},
        "prompts": {"continue_tone": 1},
    }
)
TEMPERATURE = STAGE_1.kl_temperature


@cache
def template() -> ChatTemplate:
    """The miniature's tokenizer with ChatML's turns: most words are one token, as in a large vocabulary."""
    return ChatTemplate(train_tokenizer(0))


def build(
    shapes: Shapes, scratch: Path, device: torch.device, dtype: torch.dtype, window: str, with_lora: bool = False
) -> SpeechLM:
    """The product's model with random weights, made on the device."""
    folders = {}
    for name, config in (("llm", shapes.llm), ("encoder", shapes.encoder)):
        (scratch / name).mkdir(exist_ok=True)
        (scratch / name / "config.json").write_text(json.dumps(config.to_dict()))
        folders[name] = str(scratch / name)
    torch.manual_seed(0)
    attention = attention_implementation(device, dtype)
    with torch.device(device):
        llm = AutoModelForCausalLM.from_config(shapes.llm, dtype=dtype, attn_implementation=attention)
        whisper = WhisperEncoder._from_config(shapes.encoder, dtype=dtype, attn_implementation=attention)
    section = ModelSection.model_validate(
        {
            **folders, "audio_window": window, "dtype": str(dtype).removeprefix("torch."),
            "adapter": {"bottleneck": shapes.bottleneck},
            "lora": {"rank": LORA_RANK, "dropout": 0} if with_lora else None,
        }
    )  # fmt: skip
    return SpeechLM(section, llm, SpeechEncoder(whisper, AudioWindow(window)), template()).train()


def clips(durations_s: Sequence[float], stage: StageSection) -> list[Sample]:
    """Noise with about 3 tokens of text a second and a response of up to 48."""
    rng = np.random.default_rng(0)
    (task,) = stage.prompts
    prompt = "continue" if task == "continue" else "continue_emotion"
    made = []
    for i, seconds in enumerate(durations_s):
        text = _text(round(_WORDS_PER_S * seconds), rng)
        response = _text(int(rng.integers(_LONGEST_RESPONSE // 2, _LONGEST_RESPONSE)), rng)
        made.append(
            Sample(
                Utterance(id=f"{i}", audio=f"{i}.flac", text=text, corpus="bench", emotion=EMOTIONS[i % 5]),
                Continuation(prompt=prompt, text=response, finished=True, writer="bench"),
                rng.normal(0, 3000, round(seconds * SAMPLE_RATE)).astype(np.int16),
            )
        )
    return made


def _text(num_tokens: int, rng: np.random.Generator) -> str:
    """Sentences, cut after so many tokens."""
    sentences = split_sentences()["train"]
    text = " ".join(sentences[i].text for i in rng.integers(0, len(sentences), num_tokens))
    ids = template().encode(text)[:num_tokens]
    return template().tokenizer.decode(ids)  # type: ignore[no-any-return]


def checkpoint_activations(model: SpeechLM, parts: Sequence[str]) -> None:
    """As `engine.gradient_checkpointing: [parts]` does, and not in the other parts."""
    both: dict[str, Any] = {"llm": model.llm, "encoder": model.encoder.pretrained}
    for name, part in both.items():
        if name in parts:
            part.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": model.gate.remembered})
            part.disable_input_require_grads()  # a way to gradients is there already
        else:
            part.gradient_checkpointing_disable()


@dataclass(frozen=True)
class Lengths:
    """What a batch is made of, clip by clip: samples, and tokens of prompt, speech, transcript and response."""

    samples: tuple[int, ...]
    speech: tuple[int, ...]
    transcript: tuple[int, ...]
    response: tuple[int, ...]
    prefix: int
    suffix: int

    @property
    def student(self) -> list[int]:
        """Tokens of each clip's sequence with speech."""
        return [self.prefix + s + self.suffix + r for s, r in zip(self.speech, self.response, strict=True)]

    @property
    def teacher(self) -> list[int]:
        """Tokens of each clip's sequence with words."""
        return [self.prefix + t + self.suffix + r for t, r in zip(self.transcript, self.response, strict=True)]


def num_speech_tokens(num_samples: int) -> int:
    """As `SpeechLM.num_speech_tokens` with the paper's adapter, whose three convolutions halve the rate."""
    positions = SpeechEncoder.num_positions(num_samples)
    for _ in range(3):
        positions = (positions - 1) // 2 + 1
    return positions


def lengths(samples: Sequence[Sample]) -> Lengths:
    """Of a batch of these samples."""
    words = template()
    (prompt,) = {sample.continuation.prompt for sample in samples}
    return Lengths(
        samples=tuple(len(sample.waveform) for sample in samples),
        speech=tuple(num_speech_tokens(len(sample.waveform)) for sample in samples),
        transcript=tuple(len(words.encode(sample.utterance.text)) for sample in samples),
        response=tuple(len(words.response(sample.continuation.text, finished=True)) for sample in samples),
        prefix=len(words.prefix(prompt, EMOTIONS[0])),
        suffix=len(words.suffix()),
    )


def batch(model: SpeechLM, samples: Sequence[Sample], stage: StageSection) -> Batch:
    """The samples as one micro-batch, and as the whole step; what a cached teacher says must be in them."""
    (task,) = stage.prompts
    cached = CachedTeacher(_spec(), TEMPERATURE) if stage.teacher == "cached" else None
    live = "kl" in stage.losses and cached is None
    collator = Collator(template(), model.num_speech_tokens, dict(stage.prompts), live, cached)
    made = collator(samples, [task] * len(samples), sum(lengths(samples).response), len(samples))
    return made.to(next(model.llm.parameters()).device)


def with_predictions(model: SpeechLM, samples: Sequence[Sample]) -> list[Sample]:
    """The same samples with what the text LLM says of each response token, as `writer.teacher` keeps it in shards."""
    taught = []
    for start in range(0, len(samples), _CLIPS_AT_ONCE):
        some = samples[start : start + _CLIPS_AT_ONCE]
        _, logits = model.response_logits(batch(model, some, STAGE_1))
        rows = np.split(kept_predictions(logits, _spec()), np.cumsum(lengths(some).response)[:-1])
        taught += [replace(sample, teacher=part) for sample, part in zip(some, rows, strict=True)]
    return taught


def _spec() -> TeacherSpec:
    return TeacherSpec(TOP_K, (1.0, TEMPERATURE))
