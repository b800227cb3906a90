"""What a job makes shards of: the lines of manifests, or the shards of a set that is there already (an overlay)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from shards.audio import SAMPLE_RATE
from shards.manifest import Reject
from shards.pipeline.clips import Clip, ClipLines, read_clips, scan_manifests
from shards.pipeline.overlay import Base
from shards.pipeline.tasks import Task
from shards.sets.index import AudioFile

_FLAC_BYTES_PER_S = 0.7 * 2 * SAMPLE_RATE
_RECORD_BYTES = 2048.0  # a clip's record, with the headers and the padding of a tar
_FILES_ASKED = 200  # where manifests say no durations


class Inputs(Protocol):
    """`tasks` are all of them in order, `made_of` what job.json notes of their content."""

    tasks: Sequence[Task]
    num_duplicates: int
    made_of: dict[str, object]

    def bytes_needed(self, tasks: Sequence[Task]) -> float:
        """About how much these tasks will take on disk."""
        ...

    def audio_files(self, out: str) -> list[AudioFile]:
        """Tars outside of the set in `out` that its rows point at."""
        ...

    def duplicates(self) -> Iterator[Reject]:
        """The clips that are in no task because their id was there before."""
        ...


class FromManifests:
    """Shards of `clips_per_shard` clips in the order of their ids' hashes, so that each is a fair mixture of all
    corpora. Raises as `scan_manifests`."""

    def __init__(self, manifests: Sequence[Path], splits: Sequence[str], clips_per_shard: int) -> None:
        self._lines: ClipLines = scan_manifests(manifests, splits)
        rows = self._lines.rows
        parts = [rows[start : start + clips_per_shard] for start in range(0, len(rows), clips_per_shard)]
        self.tasks: Sequence[Task] = [Task(number, len(part), part) for number, part in enumerate(parts)]
        self.num_duplicates = len(self._lines.duplicates)
        self.made_of: dict[str, object] = {"clips": self._lines.fingerprint, "clips_per_shard": clips_per_shard}

    def bytes_needed(self, tasks: Sequence[Task]) -> float:
        """From the durations where manifests give them, else from the sizes of some of the audio files."""
        lines = [task.lines for task in tasks if task.lines is not None]
        if not lines:
            return 0.0
        rows = np.concatenate(lines)
        unknown = rows[np.isnan(rows["duration_s"])]
        asked = unknown[:: -(-len(unknown) // _FILES_ASKED)] if len(unknown) else unknown
        clips = [[Path(span.path) for span in clip.spans] for clip in read_clips(self._lines.manifests, asked)]
        sizes = [sum(path.stat().st_size for path in paths) for paths in clips if all(map(Path.is_file, paths))]
        per_unknown = sum(sizes) / len(sizes) if sizes else 0.0
        known_s = float(np.nansum(rows["duration_s"], dtype=np.float64))
        return known_s * _FLAC_BYTES_PER_S + per_unknown * len(unknown) + _RECORD_BYTES * len(rows)

    def audio_files(self, out: str) -> list[AudioFile]:
        """None: the audio comes into the set."""
        return []

    def duplicates(self) -> Iterator[Reject]:
        """One reject per line whose id an earlier manifest has too."""
        return self._lines.rejects()


class FromBase:
    """Shard k is shard k of the base, with new continuations and without audio. Raises as `Base`."""

    def __init__(self, base: str) -> None:
        self._base = Base(base)
        self.tasks: Sequence[Task] = self._base.tasks()
        self.num_duplicates = 0
        self.made_of: dict[str, object] = {"base": self._base.dataset_id}

    def bytes_needed(self, tasks: Sequence[Task]) -> float:
        """Records alone."""
        return _RECORD_BYTES * sum(task.size for task in tasks)

    def audio_files(self, out: str) -> list[AudioFile]:
        """The base's tars and what they point at."""
        return self._base.audio_files(out)

    def duplicates(self) -> Iterator[Reject]:
        """None: the base has each id once."""
        return iter(())


def clip_reader(manifests: Sequence[Path], base: str | None) -> Callable[[Task], list[Clip]]:
    """What a worker turns a task into clips with."""
    if base is not None:
        return Base(base).clips

    def read(task: Task) -> list[Clip]:
        assert task.lines is not None
        return read_clips(manifests, task.lines)

    return read
