"""What a manifest holds, split by split, to be looked at beside what the corpus's makers count."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from shards.audio import AudioError, length_s
from shards.sample import Utterance

_MOST_HEADERS = 200  # read in each split, where the corpus does not say how long its clips are


@dataclass
class SplitStats:
    """The clips of one split. `unknown` of them have no duration in the manifest; some of their files are kept by."""

    clips: int = 0
    known_s: float = 0.0
    unknown: int = 0
    speakers: set[str] = field(default_factory=set)
    emotions: Counter[str] = field(default_factory=Counter)
    _files: list[str] = field(default_factory=list)

    def add(self, utterance: Utterance) -> None:
        """One more clip."""
        self.clips += 1
        if utterance.speaker is not None:
            self.speakers.add(utterance.speaker)
        self.emotions[utterance.emotion or "none"] += 1
        if utterance.duration_s is not None:
            self.known_s += utterance.duration_s
            return
        # Files at places 0, 2, 4 ... then 0, 4, 8 ... of those without a duration: spread over all, however many come.
        stride = _stride(self.unknown)
        if self.unknown % stride == 0:
            if len(self._files) == _MOST_HEADERS:
                self._files = self._files[::2]
            self._files.append(utterance.audio)
        self.unknown += 1

    def hours(self) -> tuple[float, bool] | None:
        """Hours of audio, and whether that is exact: from the manifest alone, or else from the headers of some files.
        None when neither tells."""
        if not self.unknown:
            return self.known_s / 3600, True
        lengths = [seconds for path in self._files if (seconds := _header_s(Path(path))) is not None]
        if not lengths:
            return None
        return (self.known_s + self.unknown * sum(lengths) / len(lengths)) / 3600, False


def _stride(number: int) -> int:
    """How many files there are for each that is kept, when `number` were seen."""
    stride = 1
    while number >= stride * _MOST_HEADERS:
        stride *= 2
    return stride


def _header_s(path: Path) -> float | None:
    """What the header of an audio file says of its length, in seconds."""
    try:
        return length_s(path)
    except (AudioError, OSError):
        return None
