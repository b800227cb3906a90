"""Shard sets that tests make, and damage that they do to them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from shards.sets.index import AudioFile
from shards.sets.new_set import NewSet
from shards.sets.shard_set import ShardSet
from shards.sets.tar import AudioAt, TarShard


def tar_of(shard_set: ShardSet, row: int) -> Path:
    """The tar that holds the row's record."""
    store, shard = shard_set.shards[int(shard_set.rows["shard"][row])]
    return Path(store.url) / shard.tar


def flip(path: Path, offset: int) -> None:
    """One bit of one byte."""
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def edit(root: Path, **fields: Any) -> None:
    """Replace fields of dataset.json."""
    path = root / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def make_overlay(base: ShardSet, root: Path) -> Path:
    """A set of other words for every clip of `base` but the first of each shard; the audio stays where it is."""
    with NewSet.begin(root, {"base": base.dataset_id}) as new:

        def fill(tar: TarShard, number: int) -> None:
            for row in np.flatnonzero(base.rows["shard"] == number)[1:]:
                entry, (utterance, continuation) = base.rows[row], base.record(int(row))
                assert continuation is not None
                said = dataclasses.replace(continuation, text=f"Again: {continuation.text}")
                at = AudioAt(number, *(int(entry[f"audio_{part}"]) for part in ("offset", "size", "crc32")))
                tar.add(utterance, said, at, int(entry["num_samples"]))

        shards = [new.write_shard(i, lambda tar, i=i: fill(tar, i)) for i in range(len(base.shards))]  # type: ignore[misc]
        files = [AudioFile(str(Path(store.url) / shard.tar), shard.bytes) for store, shard in base.shards]
        corpora = [{"corpus": name, "licence": None, "clips": len(base)} for name in base.corpora]
        new.finish([shard for shard in shards if shard], files, 0, {"prompt": base.prompt, "corpora": corpora})
    return root
