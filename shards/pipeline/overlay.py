"""New continuations over the audio of a shard set that is already there: task k is shard k of the base.

The tars of an overlay hold records alone; its rows point at the base's audio. Workers read one shard of the base at a
time, the driver reads what dataset.json says of it.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from shards.pipeline.clips import Clip, KeptAudio
from shards.pipeline.tasks import Task
from shards.sets.index import OWN_TAR, AudioAt, AudioFile, Description, read_description
from shards.sets.shard_set import CorruptSample, ShardSet
from shards.sets.store import Store, open_store


class Base:
    """The set that an overlay lies over. Raises ValueError when `root` is unfinished, damaged or no shard set."""

    def __init__(self, root: str) -> None:
        self._store: Store = open_store(root)
        self._description: Description = read_description(self._store)
        self.dataset_id = self._description.dataset_id

    def tasks(self) -> list[Task]:
        """One per shard."""
        return [Task(number, shard.rows) for number, shard in enumerate(self._description.shards)]

    def clips(self, task: Task) -> list[Clip]:
        """The clips of shard `task.number`. Raises CorruptSample (a ValueError) when it is damaged."""
        shard = self._description.shards[task.number]
        alone = ShardSet([self._store], [dataclasses.replace(self._description, shards=(shard,))])
        clips = []
        try:
            records = alone.records(range(shard.rows))
        except CorruptSample as error:
            told = f"`blsp shard verify {self._store.url}` names all damage"
            raise ValueError(f"{error}; {told}: copy the base again") from None
        for entry, (utterance, _) in zip(alone.rows, records, strict=True):
            own = entry["audio_file"] == OWN_TAR
            file = task.number if own else len(self._description.shards) + int(entry["audio_file"])
            at = AudioAt(file, int(entry["audio_offset"]), int(entry["audio_size"]), int(entry["audio_crc32"]))
            clips.append(Clip(utterance, KeptAudio(at, int(entry["num_samples"]))))
        return clips

    def audio_files(self, out: str) -> list[AudioFile]:
        """Where the overlay in `out` finds the audio: each tar of the base, then each file that the base points at."""
        tars = [AudioFile(f"shards/{shard.name}.tar", shard.bytes) for shard in self._description.shards]
        files = [*tars, *self._description.audio_files]
        return [AudioFile(_seen_from(out, self._store.url, file.path), file.bytes) for file in files]


def _seen_from(out: str, base: str, path: str) -> str:
    """A path below `base` as dataset.json of `out` names it: relative when both lie side by side, so that they can be
    moved together, else absolute."""
    if "://" in path or Path(path).is_absolute():
        return path
    if "://" in base:
        return f"{base.rstrip('/')}/{path}"
    absolute = os.path.normpath(Path(base).absolute() / path)
    if "://" not in out and Path(base).absolute().parent == Path(out).absolute().parent:
        return os.path.relpath(absolute, out)
    return absolute
