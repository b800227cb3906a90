"""What is compared: everything that answers a spoken clip, behind one small protocol.

A system that cannot do something (a text LLM cannot classify a voice) leaves it out, which the table shows as a dash.
Text systems are asked once per distinct transcript: the same words always get the same answer. Models run elsewhere
(`blsp.evaluate.desk`); here is what they are asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from blsp import recipe as recipes
from blsp.evaluate.desk import Items, Question, waveform
from blsp.evaluate.scoring import LABEL, PLAIN, TONE, Answers
from blsp.export import EXPORT_CONFIG, export_config
from blsp.features import AudioWindow, log_mel
from blsp.hf.convert import is_transformers_folder
from cluster.json_files import read_object
from shards.manifest import none_of_split, read_manifest
from shards.prompts import in_language
from shards.sample import Utterance
from shards.writers.fingerprint import model_fingerprint
from shards.writers.protocol import Request

# Has questions answered, each of items of its own: `blsp.evaluate.asking.Examiner.ask`.
Ask = Callable[[str, Sequence[tuple[Question, Items]]], list[list[str]]]


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


class System(Protocol):
    """Says what it can of clips."""

    name: str

    def answer(self, clips: Sequence[Utterance]) -> Answers:
        """In the clips' order; None for what it cannot do."""


class TextLLM:
    """A text LLM that is asked each thing once, however often the answer is needed."""

    def __init__(self, model: str, ask: Ask) -> None:
        self._question, self._ask = Question("write", model), ask
        self._answers: dict[Request, str] = {}

    def answer(self, what: str, requests: Sequence[Request]) -> list[str]:
        """One answer per request, in order."""
        new = [request for request in dict.fromkeys(requests) if request not in self._answers]
        new.sort(key=lambda request: len(request.text))  # a batch is as long as its longest
        if new:
            (texts,) = self._ask(what, [(self._question, new)])
            self._answers.update(zip(new, texts, strict=True))
        return [self._answers[request] for request in requests]

    def answer_all(self, name: str, clips: Sequence[Utterance], texts: Sequence[str]) -> list[list[str]]:
        """What a system that only reads says to each clip's text under each of the three prompts, in its language."""
        prompts, read = (PLAIN, TONE, LABEL), list(zip(clips, texts, strict=True))
        asked = [Request(text, None, in_language(prompt, clip.language)) for prompt in prompts for clip, text in read]
        answers = self.answer(name, asked)
        return [answers[place * len(texts) :][: len(texts)] for place in range(len(prompts))]


class TextSystem:
    """The LLM given the true transcript: knows every word, hears nothing."""

    def __init__(self, name: str, llm: TextLLM) -> None:
        self.name, self._llm = name, llm

    def answer(self, clips: Sequence[Utterance]) -> Answers:
        plain, tone, label = self._llm.answer_all(self.name, clips, [clip.text for clip in clips])
        return Answers(plain=plain, tone=tone, label=label)


class CascadeSystem:
    """The LLM given what a speech recogniser heard."""

    def __init__(self, name: str, recogniser: str, llm: TextLLM, ask: Ask) -> None:
        self.name = name
        self._recogniser, self._llm, self._ask = recogniser, llm, ask

    def answer(self, clips: Sequence[Utterance]) -> Answers:
        (heard,) = self._ask(f"{self.name} hears", [(Question("transcribe", self._recogniser), clips)])
        plain, tone, label = self._llm.answer_all(self.name, clips, heard)
        return Answers(plain=plain, tone=tone, label=label, heard=heard)


class LinearSystem:
    """Logistic regression on the mean log-mel spectrum (80 numbers a clip): the trivial baseline for emotion."""

    def __init__(self, name: str, train: Sequence[Utterance]) -> None:
        self.name = name
        emotions = [clip.emotion for clip in train]
        if len(set(emotions)) < 2:
            raise ValueError(f"{name}: the clips to fit it on must show at least two emotions, got {set(emotions)}")
        self._classifier: Pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        self._classifier.fit(_mean_log_mel(train), emotions)

    def answer(self, clips: Sequence[Utterance]) -> Answers:
        return Answers(classifier=[str(emotion) for emotion in self._classifier.predict(_mean_log_mel(clips))])


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

    def __init__(self, name: str, run: Path, ask: Ask) -> None:
        self.name, self._run, self._ask = name, run, ask

    def answer(self, clips: Sequence[Utterance]) -> Answers:
        asked = [Question("respond", str(self._run), prompt) for prompt in (PLAIN, TONE, LABEL)]
        if has_classifier(self._run):
            asked.append(Question("classify", str(self._run)))
        plain, tone, label, *classifier = self._ask(self.name, [(question, clips) for question in asked])
        return Answers(plain=plain, tone=tone, label=label, classifier=classifier[0] if classifier else None)


def has_classifier(run: Path) -> bool:
    """Whether the emotion classifier is in an export."""
    if is_transformers_folder(run):
        return bool(read_object(run / EXPORT_CONFIG).get("emotions"))
    return "classifier" in export_config(run / "export")["parts"]


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
    """Opens the systems of a recipe. Two systems with the same text LLM share its answers."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._llms: dict[str, TextLLM] = {}

    def llm(self, path: str) -> TextLLM:
        """The text LLM at `path` (a folder or a hub id)."""
        return self._llms.setdefault(path, TextLLM(path, self._ask))

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
        """Raises ValueError or OSError when a manifest that the system needs is missing or unfit."""
        match spec:
            case recipes.TextSystem():
                return TextSystem(spec.name, self.llm(spec.llm))
            case recipes.CascadeSystem():
                return CascadeSystem(spec.name, spec.asr, self.llm(spec.llm), self._ask)
            case recipes.LinearSystem():
                return LinearSystem(spec.name, read_labelled(spec.train, "train"))
            case recipes.SpeechSystem():
                return SpeechSystem(spec.name, spec.run, self._ask)
