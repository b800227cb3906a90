"""What models are asked, in chunks, and one copy of each model that answers them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from blsp.evaluate.asr import open_recogniser
from blsp.hf.convert import load_model
from shards.audio import load_audio
from shards.sample import EMOTIONS, Continuation, Utterance
from shards.writers.protocol import Request
from shards.writers.with_transformers import TransformersWriter

Items = Sequence[Request] | Sequence[Utterance]


@dataclass(frozen=True)
class Question:
    """To a model (a folder or a hub id). `write`: a text LLM answers Requests. `transcribe`: a recogniser writes down
    clips. Of a model of ours, `respond`: what it says to clips under `prompt`, `classify`: their emotions."""

    what: Literal["write", "transcribe", "respond", "classify"]
    model: str
    prompt: str | None = None


@dataclass(frozen=True)
class Chunk:
    """As many items as a model takes at once. What it answers depends on nothing else, so neither does it matter who
    answers which chunk."""

    question: Question
    items: Items


def waveform(utterance: Utterance) -> NDArray[np.int16]:
    """Mono 16 kHz samples, decoded anew each time so that a test set never has to fit in memory. Raises AudioError."""
    return load_audio(Path(utterance.audio), utterance.start_s, utterance.duration_s)


class Desk:
    """Answers chunks with models that are loaded when they are first asked. Text LLMs are kept, which several systems
    share; of the others the last one."""

    def __init__(self, *, max_new_tokens: int, batch_size: int) -> None:
        self._max_new_tokens, self._batch_size = max_new_tokens, batch_size
        self._writers: dict[str, TransformersWriter] = {}
        self._other: tuple[str, Any] | None = None

    def answer(self, chunk: Chunk) -> list[str]:
        """A text per item, in order. Raises ValueError or OSError when the model cannot be loaded."""
        question = chunk.question
        if question.what == "write":
            requests = cast(Sequence[Request], chunk.items)
            written = self._writer(question.model).write(requests)
            return [answer.text if isinstance(answer, Continuation) else "" for answer in written]
        waveforms = [waveform(clip) for clip in cast(Sequence[Utterance], chunk.items)]
        model = self._hearing(question)
        if question.what == "transcribe":
            texts: list[str] = model.transcribe(waveforms)
        elif question.what == "respond":
            languages = [clip.language for clip in cast(Sequence[Utterance], chunk.items)]
            texts = model.generate(waveforms, question.prompt, self._max_new_tokens, languages)
        else:
            texts = [EMOTIONS[place] for place in model.classify(waveforms).argmax(axis=1)]
        assert len(texts) == len(chunk.items)
        return texts

    def _writer(self, model: str) -> TransformersWriter:
        if model not in self._writers:
            self._writers[model] = TransformersWriter(
                model, max_new_tokens=self._max_new_tokens, batch_size=self._batch_size
            )
        return self._writers[model]

    def _hearing(self, question: Question) -> Any:
        if self._other is None or self._other[0] != question.model:
            self._other = None  # before another one needs its memory
            recognises = question.what == "transcribe"
            loaded = open_recogniser(question.model) if recognises else load_model(Path(question.model))
            self._other = (question.model, loaded)
        return self._other[1]
