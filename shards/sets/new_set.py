"""A shard set that is made from what is already on disk, without an LLM: shards one by one, dataset.json at the end.

The same call on the same folder goes on from what an earlier one committed.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from shards.audio import SAMPLE_RATE
from shards.sets.index import (
    FORMAT,
    AudioFile,
    Shard,
    damaged,
    dataset_id,
    read_description,
    read_object,
)
from shards.sets.store import Store, open_store
from shards.sets.tar import TarShard

_FOLDERS = ("shards", "index", "commits")
_BEFORE_A_COMMIT = {"job.json", "rejects", *_FOLDERS}
_ELSEWHERE = "choose another folder or remove it"
_AGAIN = "delete this file and run the same command again, which makes that part anew"


class NewSet:
    """A root that this process alone writes to. `store` is where its files go, `finished` its shards if it is a set."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.finished = read_description(store).shards if "dataset.json" in store.names("") else ()

    @classmethod
    @contextmanager
    def begin(cls, root: str | Path, job: dict[str, Any]) -> Iterator[Self]:
        """Hold `root` (made if missing) for a set made by `job`. One that is finished may be finished again, and where
        nothing is committed a job of the same kind takes over: its arguments were wrong.

        Raises ValueError when the root holds something else, or another process holds it.
        """
        store = open_store(root)
        with store.lock():
            _take(store, job)
            for leftover in store.scratch().iterdir():  # of a killed call: the lock says that nobody else is here
                if leftover.name != ".lock":
                    leftover.unlink()
            yield cls(store)

    def committed(self, number: int, check: Callable[[dict[str, Any]], None]) -> dict[str, Any] | None:
        """What `commit` was told for this number, None while it was not.

        Raises ValueError, with the remedy, when it is damaged, which `check` says by a KeyError, TypeError or
        ValueError where it is still JSON.
        """
        name = _commit_name(number)
        try:
            record = read_object(self.store, name, _AGAIN)
        except FileNotFoundError:
            return None
        try:
            check(record)
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(self.store, name, error, _AGAIN) from None
        return record

    def commit(self, number: int, record: dict[str, Any]) -> None:
        """Part `number` is done; `record` is what `finish` has to know of it."""
        self.store.write(_commit_name(number), json.dumps(record, ensure_ascii=False).encode())

    def write_shard(self, number: int, fill: Callable[[TarShard], None]) -> Shard | None:
        """Shard `number` with the samples that `fill` adds; None, and no file, when it adds none."""
        path = self.store.scratch() / f"{number:06d}.tar"
        path.unlink(missing_ok=True)
        with TarShard(path) as tar:
            fill(tar)
        rows = len(tar.index.rows)
        if not rows:
            path.unlink()
            return None
        index = tar.index.encode()
        shard = Shard(
            name=f"{number:06d}-{tar.digest}",
            rows=rows,
            bytes=path.stat().st_size,
            num_samples=tar.index.num_samples,
            index_crc32=zlib.crc32(index),
        )
        self.store.put(path, shard.tar)
        self.store.write(shard.index, index)
        return shard

    def finish(
        self, shards: Sequence[Shard], audio_files: Sequence[AudioFile], num_parts: int, about: dict[str, Any]
    ) -> dict[str, Any]:
        """Delete what this set does not consist of, and write dataset.json, which `about` completes. Returns it."""
        keep = {name for shard in shards for name in (shard.tar, shard.index)}
        keep |= {_commit_name(number) for number in range(num_parts)}
        tokens = [f"tokens/{fingerprint}" for fingerprint in self.store.folders("tokens")]
        keep |= {f"{folder}/{shard.name}.npy" for folder in tokens for shard in shards}
        for name in self.store.names(""):
            if name.startswith((".job.json.", ".dataset.json.")):  # written by a killed call, or half so
                self.store.delete(name)
        for folder in (*_FOLDERS, *tokens):
            for name in self.store.names(folder):
                if f"{folder}/{name}" not in keep:
                    self.store.delete(f"{folder}/{name}")
        record = {
            "format": FORMAT,
            "dataset_id": dataset_id(list(shards)),
            "written": sum(shard.rows for shard in shards),
            "hours": sum(shard.num_samples for shard in shards) / SAMPLE_RATE / 3600,
            **about,
            "audio_files": [dataclasses.asdict(file) for file in audio_files],
            "shards": [dataclasses.asdict(shard) for shard in shards],
        }
        self.store.write("dataset.json", json.dumps(record, indent=1, ensure_ascii=False).encode())
        return record


def _take(store: Store, job: dict[str, Any]) -> None:
    """Make the root one of `job` if it is not yet. Raises ValueError when it holds something else."""
    present = {name for name in (*store.names(""), *store.folders("")) if not name.startswith((".", "_tmp"))}
    if present:
        before = read_object(store, "job.json", _ELSEWHERE) if "job.json" in present else None
        if before == job:
            return
        same_kind = before is not None and before.keys() == job.keys() and present <= _BEFORE_A_COMMIT
        if not same_kind or store.names("commits"):
            what = "another shard set" if "dataset.json" in present else "something else"
            raise ValueError(f"{store.url}: holds {what}; {_ELSEWHERE}")
    store.write("job.json", json.dumps(job, indent=1, ensure_ascii=False).encode())


def _commit_name(number: int) -> str:
    return f"commits/{number:06d}.json"
