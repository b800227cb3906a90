"""Miniatures of every corpus: its layout on disk as it is unpacked, a few clips of tones, and the defects it has.

One module per corpus, named as `blsp manifest` names it, with

    DEFECTS                 the names of the defects that its `make` can plant, one at a time
    make(root, defect=None) writes the corpus below `root` and returns what a reader must make of it (`Made`)
"""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile


@dataclass
class Made:
    """`root` is what `blsp manifest` is given; `kept` the ids that it keeps, `dropped` the reasons of its rejects."""

    root: Path
    kept: set[str]
    dropped: Counter[str] = field(default_factory=Counter)
    subset: str | None = None

    def drop(self, name: str, reason: str) -> None:
        """The id `name` is not kept, for a reason."""
        self.kept.remove(name)
        self.dropped[reason] += 1


class Miniature(Protocol):
    """A module of this package."""

    DEFECTS: tuple[str, ...]

    def make(self, root: Path, defect: str | None = None) -> Made:
        """Write the corpus."""
        ...


def names() -> list[str]:
    """Of the corpora that have a miniature."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def miniature(name: str) -> Miniature:
    """That of the corpus `name`."""
    module: Miniature = importlib.import_module(f"{__name__}.{name}")  # type: ignore[assignment]
    return module


def all_defects() -> list[tuple[str, str]]:
    """(corpus, defect) of every defect that can be planted."""
    return [(name, defect) for name in names() for defect in miniature(name).DEFECTS]


def tone(
    path: Path, seconds: float = 1.0, rate: int = 16000, channels: int = 1, loudness: float = 0.3, **options: str
) -> Path:
    """Write a clip whose sound is its own: its pitch comes from its path. Returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hertz = 200 + sum(path.name.encode()) % 400
    wave = loudness * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)
    soundfile.write(path, np.stack([wave] * channels, axis=1), rate, **options)
    return path
