"""A few held-out clips, always the same ones, and what the model says of them; and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from blsp.features import AudioWindow, log_mel
from blsp.model import SpeechLM
from blsp.together import together
from shards.audio import SAMPLE_RATE
from shards.batches.collate import Collator
from shards.prompts import language_of
from shards.sample import EMOTIONS
from shards.sets.shard_set import CorruptSample, Sample, ShardSet

_NEW_TOKENS = 48
_CELL = 48  # pixels


class Shown:
    """The clips, and how to ask about them."""

    def __init__(self, shard_set: ShardSet, rows: Sequence[int], collator: Collator) -> None:
        """Rank 0 reads the clips for all, so that all ask about the same ones."""
        self.samples = together(lambda: _readable(shard_set, rows))
        self._prompt = next(task for task in collator.tasks if task != "identify" or len(collator.tasks) == 1)

    def ask(self, model: SpeechLM) -> list[str]:
        """The model's own continuations. Every rank calls it: together they hold the weights."""
        if not self.samples:
            return []
        languages = [language_of(sample.continuation.prompt) for sample in self.samples]
        return model.generate([sample.waveform for sample in self.samples], self._prompt, _NEW_TOKENS, languages)

    def write(self, writer: SummaryWriter, step: int, answers: Sequence[str], first: bool) -> None:
        """Put them into TensorBoard; what does not change only the first time."""
        for number, (sample, answer) in enumerate(zip(self.samples, answers, strict=True), start=1):
            name = f"clip_{number}"
            if first:
                writer.add_audio(name, torch.from_numpy(sample.waveform / 32768.0)[None], step, SAMPLE_RATE)
                writer.add_image(f"{name}/log_mel", mel_picture(sample.waveform), step, dataformats="HW")
            writer.add_text(name, _text(sample, answer), step)


def _readable(shard_set: ShardSet, rows: Sequence[int]) -> list[Sample]:
    """Without conversations."""
    read = [sample for sample in shard_set.read_many(rows) if not isinstance(sample, CorruptSample)] if rows else []
    return [sample for sample in read if not sample.utterance.messages]


def write_confusion(writer: SummaryWriter, step: int, counts: Sequence[Sequence[int]]) -> None:
    """True emotions downwards, what the classifier says to the right; dark where a row's clips are."""
    writer.add_image("validation/confusion", confusion_picture(counts), step, dataformats="HW")
    head = f"| true | {' | '.join(EMOTIONS)} |\n|---|{'---|' * len(EMOTIONS)}\n"
    rows = (f"| {name} | {' | '.join(map(str, row))} |" for name, row in zip(EMOTIONS, counts, strict=True))
    writer.add_text("validation/confusion", head + "\n".join(rows), step)


def confusion_picture(counts: Sequence[Sequence[int]]) -> NDArray[np.uint8]:
    """Grey values [5 * 48, 5 * 48] of counts [5][5]: black is all of a row."""
    shares = np.array(counts, float)
    shares /= np.maximum(1, shares.sum(1, keepdims=True))
    return np.kron(255 * (1 - shares), np.ones((_CELL, _CELL))).astype(np.uint8)


def mel_picture(waveform: NDArray[np.int16]) -> NDArray[np.uint8]:
    """Grey values [80, frames], low frequencies at the bottom."""
    mel, _ = log_mel(torch.from_numpy(waveform), torch.tensor([len(waveform)]), AudioWindow("exact"))
    values = (mel - mel.min()) / (mel.max() - mel.min()).clamp(min=1e-6)
    picture: NDArray[np.uint8] = (255 * values).T.flip(0).byte().numpy()
    return picture


def _text(sample: Sample, answer: str) -> str:
    said, wrote = sample.utterance, sample.continuation
    lines = (("heard", f"{said.text} ({said.emotion or 'no label'})"), ("text LLM", wrote.text), ("model", answer))
    return "\n\n".join(f"**{who}**: {words}" for who, words in lines)
