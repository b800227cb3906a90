"""The clips that are read and written: sentences that espeak-ng speaks where it is not silent, or your own audio."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from shards.audio import SAMPLE_RATE, AudioError, encode_flac, load_audio
from shards.manifest import write_manifest
from shards.miniature.synth import Prosody, speak
from shards.miniature.world import OBJECTS, SUBJECTS, TIMES, VERBS
from shards.sample import EMOTIONS, Utterance

ROOM_TONE = 10 ** (-55 / 20)  # digital silence between words would flatter FLAC
_VOICES = ("en-us+m3", "en-us+f4", "en-us+f2", "en-us+m7", "en-us+f5", "en-us+m1")
_AUDIO = {".wav", ".flac", ".ogg", ".mp3"}


@dataclass(frozen=True)
class Clips:
    """Utterances, each a 16 kHz mono WAV file below `folder`, listed in `folder`/manifest.jsonl."""

    folder: Path
    utterances: list[Utterance]

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.jsonl"

    @cached_property
    def waveforms(self) -> list[NDArray[np.int16]]:
        """int16 [num_samples] of each, at 16 kHz."""
        return [soundfile.read(utterance.audio, dtype="int16")[0] for utterance in self.utterances]

    @cached_property
    def flacs(self) -> list[bytes]:
        """Each as the shards hold it."""
        return [encode_flac(waveform) for waveform in self.waveforms]

    @property
    def duration_s(self) -> float:
        return sum(map(len, self.waveforms)) / SAMPLE_RATE


def make_clips(folder: Path, number: int, audio: Path | None = None) -> Clips:
    """`number` clips in a new folder, made of the files below `audio` where it is given."""
    (folder / "wav").mkdir(parents=True)
    utterances = []
    for i, (text, waveform) in enumerate(_found(audio, number) if audio else _spoken(number)):
        path = folder / "wav" / f"{i:05d}.wav"
        soundfile.write(path, waveform, SAMPLE_RATE, subtype="PCM_16")
        emotion, speaker = EMOTIONS[i % len(EMOTIONS)], f"s{i % 24}"
        utterances.append(
            Utterance(id=f"c{i:05d}", audio=str(path), text=text, corpus="bench", emotion=emotion, speaker=speaker)
        )
    clips = Clips(folder, utterances)
    write_manifest(clips.manifest, utterances)
    return clips


def _spoken(number: int) -> Iterator[tuple[str, NDArray[np.int16]]]:
    """One to six sentences each, some 9 s in the mean."""
    random = np.random.default_rng(7)
    for _ in range(number):
        words = [
            f"{random.choice(SUBJECTS)} {random.choice(VERBS)} {random.choice(OBJECTS)} {random.choice(TIMES)}"
            for _ in range(random.integers(1, 7))
        ]
        text = ", and ".join(words)
        prosody = Prosody(random.uniform(25, 75), 50, random.uniform(130, 200), 60)
        speech = speak(text, str(random.choice(_VOICES)), prosody).samples
        noisy = 0.5 * speech + ROOM_TONE * random.standard_normal(len(speech))
        yield text, np.rint(32767 * np.clip(noisy, -1, 1)).astype(np.int16)


def _found(folder: Path, number: int) -> Iterator[tuple[str, NDArray[np.int16]]]:
    """The first `number` files that can be used, over again where there are too few. Raises ValueError for none."""
    waveforms = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in _AUDIO):
        try:
            waveforms.append(load_audio(path))
        except AudioError:
            continue
        if len(waveforms) == number:
            break
    if not waveforms:
        raise ValueError(f"{folder}: no audio file that can be used; give a folder of {', '.join(sorted(_AUDIO))}")
    for i in range(number):
        yield f"clip number {i}", waveforms[i % len(waveforms)]
