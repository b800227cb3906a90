"""What is compared: everything that answers a spoken clip, behind one small protocol.

A system that cannot do something (a text LLM cannot classify a voice) returns None for it, which the table shows as a
dash. Text systems are asked once per distinct transcript: the same words always get the same answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from blsp import recipe as recipes
from blsp.evaluate.asr import Recogniser, open_recogniser
from blsp.export import EXPORT_CONFIG, export_config
from blsp.features import AudioWindow, log_mel
from blsp.hf.convert import is_transformers_folder, load_model
from blsp.model import SpeechLM
from cluster.json_files import read_object
from shards.audio import load_audio
from shards.manifest import none_of_split, read_manifest
from shards.sample import EMOTIONS, Utterance
from shards.writers.fingerprint import model_fingerprint
from shards.writers.protocol import Request, Writer
from shards.writers.with_transformers import TransformersWriter


def read_labelled(manifest: Path, split: str | None) -> list[Utterance]:
    """The utterances of a manifest's split, of which each has an emotion. Raises ValueError naming the first without,
    and for a manifest that has none of that split."""
    everything = read_manifest(manifest)
    utterances = [utterance for utterance in everything if split is None or utterance.in_split([split])]
    if not utterances and split is not None:
        raise none_of_split(manifest, [split], {utterance.split for utterance in everything})
    if conversations := [utterance.id for utterance in utterances if utterance.messages]:
        raise ValueError(
            f"{manifest}: {len(conversations)} of its lines are conversations, the first {conversations[0]!r}; systems "
            "are compared on single turns: leave `messages` out"
        )
    unlabelled = [utterance.id for utterance in utterances if utterance.emotion is None]
    if unlabelled:
        raise ValueError(
            f"{manifest}: {len(unlabelled)} of {len(utterances)} utterances have no emotion, first {unlabelled[0]!r}; "
            "evaluation needs one for each: label or remove them"
        )
    return utterances


def waveform(utterance: Utterance) -> NDArray[np.int16]:
    """Mono 16 kHz samples, decoded anew each time so that a test set never has to fit in memory. Raises AudioError."""
    return load_audio(Path(utterance.audio), utterance.start_s, utterance.duration_s)


class System(Protocol):
    """Answers about clips, in their order; None for what the system cannot do."""

    name: str

    def respond(self, clips: Sequence[Utterance], prompt: str) -> list[str] | None:
        """What it says to each clip under a key of `shards.prompts.PROMPTS`."""

    def classify(self, clips: Sequence[Utterance]) -> list[str] | None:
        """The emotion that its classifier names for each clip."""

    def transcribe(self, clips: Sequence[Utterance]) -> list[str] | None:
        """The words that it heard in each clip, if it writes any down."""


class TextLLM:
    """A text LLM that is asked each thing once, however often the answer is needed."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._answers: dict[Request, str] = {}

    def answer(self, requests: Sequence[Request]) -> list[str]:
        """One answer per request, in order."""
        new = [request for request in dict.fromkeys(requests) if request not in self._answers]
        if new:
            written = self._writer.write(new)
            assert len(written) == len(new)
            self._answers.update((request, answer.text) for request, answer in zip(new, written, strict=True))
        return [self._answers[request] for request in requests]


class TextSystem:
    """The LLM given the true transcript: knows every word, hears nothing."""

    def __init__(self, name: str, llm: TextLLM) -> None:
        self.name = name
        self._llm = llm

    def respond(self, clips: Sequence[Utterance], prompt: str) -> list[str] | None:
        return self._llm.answer([Request(clip.text, None, prompt) for clip in clips])

    def classify(self, clips: Sequence[Utterance]) -> list[str] | None:
        return None

    def transcribe(self, clips: Sequence[Utterance]) -> list[str] | None:
        return None


class CascadeSystem:
    """The LLM given what a speech recogniser heard."""

    def __init__(self, name: str, recogniser: Recogniser, llm: TextLLM) -> None:
        self.name = name
        self._recogniser = recogniser
        self._llm = llm
        self._heard: dict[str, str] = {}

    def respond(self, clips: Sequence[Utterance], prompt: str) -> list[str] | None:
        return self._llm.answer([Request(text, None, prompt) for text in self.transcribe(clips)])

    def classify(self, clips: Sequence[Utterance]) -> list[str] | None:
        return None

    def transcribe(self, clips: Sequence[Utterance]) -> list[str]:
        new = [clip for clip in clips if clip.id not in self._heard]
        if new:
            texts = self._recogniser.transcribe([waveform(clip) for clip in new])
            self._heard.update((clip.id, text) for clip, text in zip(new, texts, strict=True))
        return [self._heard[clip.id] for clip in clips]


class LinearSystem:
    """Logistic regression on the mean log-mel spectrum (80 numbers a clip): the trivial baseline for emotion."""

    def __init__(self, name: str, train: Sequence[Utterance]) -> None:
        self.name = name
        emotions = [clip.emotion for clip in train]
        if len(set(emotions)) < 2:
            raise ValueError(f"{name}: the clips to fit it on must show at least two emotions, got {set(emotions)}")
        self._classifier: Pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        self._classifier.fit(_mean_log_mel(train), emotions)

    def respond(self, clips: Sequence[Utterance], prompt: str) -> list[str] | None:
        return None

    def classify(self, clips: Sequence[Utterance]) -> list[str] | None:
        return [str(emotion) for emotion in self._classifier.predict(_mean_log_mel(clips))]

    def transcribe(self, clips: Sequence[Utterance]) -> list[str] | None:
        return None


def _mean_log_mel(clips: Sequence[Utterance]) -> NDArray[np.float64]:
    """Means over time of the log-mel frames, [clips, 80]."""
    means = []
    for clip in clips:
        samples = torch.from_numpy(waveform(clip))
        frames, _ = log_mel(samples, torch.tensor([len(samples)]), AudioWindow("exact"))
        means.append(frames.mean(0).double().numpy())
    return np.stack(means)


class SpeechSystem:
    """A model of ours. Its classifier is asked only if it was trained and therefore exported."""

    def __init__(self, name: str, model: SpeechLM, max_new_tokens: int) -> None:
        self.name = name
        self._model = model
        self._max_new_tokens = max_new_tokens

    def respond(self, clips: Sequence[Utterance], prompt: str) -> list[str] | None:
        return self._model.generate([waveform(clip) for clip in clips], prompt, self._max_new_tokens)

    def classify(self, clips: Sequence[Utterance]) -> list[str] | None:
        if "classifier" not in self._model.exported_parts:
            return None
        log_probabilities = self._model.classify([waveform(clip) for clip in clips])
        return [EMOTIONS[place] for place in log_probabilities.argmax(axis=1)]

    def transcribe(self, clips: Sequence[Utterance]) -> list[str] | None:
        return None


def prompts_learnt(run: Path) -> list[str]:
    """The prompts under which a run, or an earlier one that it starts from, was trained; as far as exports exist."""
    if is_transformers_folder(run):
        training = read_object(run / EXPORT_CONFIG).get("training") or {}
        return sorted({prompt for stage in training.get("stages", []) for prompt in stage["stage"]["prompts"]})
    learnt: set[str] = set()
    config: Path | None = run / "export" / EXPORT_CONFIG
    seen: set[Path] = set()
    while config is not None and config not in seen and config.exists():
        seen.add(config)
        exported = export_config(config.parent)
        learnt.update(exported["stage"]["prompts"])
        earlier = exported["model"]["init"]
        config = earlier and Path(earlier) / "export" / EXPORT_CONFIG
    return sorted(learnt)


class Workshop:
    """Opens the systems of a recipe. Text LLMs are kept, so that two systems with the same LLM share it."""

    def __init__(self, *, max_new_tokens: int, batch_size: int) -> None:
        self._max_new_tokens = max_new_tokens
        self._batch_size = batch_size
        self._llms: dict[str, TextLLM] = {}

    def llm(self, path: str) -> TextLLM:
        """The text LLM at `path` (a folder or a hub id), loaded the first time."""
        if path not in self._llms:
            writer = TransformersWriter(path, max_new_tokens=self._max_new_tokens, batch_size=self._batch_size)
            self._llms[path] = TextLLM(writer)
        return self._llms[path]

    @staticmethod
    def check(spec: recipes.System) -> None:
        """What can be known without loading a model. Raises ValueError or OSError for what `open` would not find."""
        match spec:
            case recipes.TextSystem():
                model_fingerprint(spec.llm, None)
            case recipes.CascadeSystem():
                model_fingerprint(spec.llm, None)
                model_fingerprint(spec.asr, None)
            case recipes.LinearSystem():
                read_labelled(spec.train, "train")
            case recipes.SpeechSystem():
                if not is_transformers_folder(spec.run):
                    export_config(spec.run / "export")

    def open(self, spec: recipes.System) -> System:
        """Raises ValueError or OSError when a folder or manifest that the system needs is missing or unfit."""
        match spec:
            case recipes.TextSystem():
                return TextSystem(spec.name, self.llm(spec.llm))
            case recipes.CascadeSystem():
                return CascadeSystem(spec.name, open_recogniser(spec.asr), self.llm(spec.llm))
            case recipes.LinearSystem():
                return LinearSystem(spec.name, read_labelled(spec.train, "train"))
            case recipes.SpeechSystem():
                return SpeechSystem(spec.name, load_model(spec.run), self._max_new_tokens)
