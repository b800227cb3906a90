"""Is a shard set still what was written? Every damage is one line, and none hides another in a different shard."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.sets.index import Description, Shard, dataset_id, name_hash, read_dataset
from shards.sets.shard_check import Inspect, ShardCheck
from shards.sets.shard_set import audio_file
from shards.sets.store import Store, open_store
from shards.sets.tokens import TOKEN_COUNTS, decode_counts, tokens_file

_FAST_ROWS_PER_SHARD = 3
_MAX_THREADS = 16
_HEADER_BYTES = 4096


@dataclass(frozen=True)
class Verified:
    """What was looked at, and how much of it is damaged. `bytes` and `num_samples` are those of the whole set."""

    shards: int
    rows: int
    rows_read: int
    bytes: int
    num_samples: int
    damages: int
    damaged_shards: int


def verify(
    root: str | Path,
    on_damage: Callable[[str], None],
    *,
    fast: bool = False,
    inspect: Inspect | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verified:
    """Look at all of a set, or with `fast` at its sizes, its indexes and a few rows per shard, always the same ones.

    `on_damage` gets each line, `on_progress` the number of shards done and of all. `inspect` may object to an
    utterance whose bytes are intact. Raises ValueError when dataset.json does not say which files there should be.
    """
    store = open_store(root)
    record, description = read_dataset(store)
    shards = description.shards

    def check(number: int) -> tuple[list[str], int, NDArray[np.uint64]]:  # in a thread, so with a store of its own
        one = ShardCheck(open_store(root), description, shards[number], inspect)
        one.run(_sampled_rows(description, number) if fast else None)
        return one.damages, one.rows_read, one.id_hashes

    counts = {"damages": 0, "damaged_shards": 0, "rows_read": 0}
    hashes = []

    def tell(damages: Sequence[str]) -> None:
        counts["damages"] += len(damages)
        for damage in damages:
            on_damage(damage)

    tell(list(_set_damages(store, record.get("written"), description)))
    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        results = pool.map(check, range(len(shards)))
        with contextlib.closing(results):  # type: ignore[type-var]  # on Ctrl-C it takes back what nobody has begun
            for done, (damages, rows_read, id_hashes) in enumerate(results, start=1):
                tell(damages)
                counts["damaged_shards"] += bool(damages)
                counts["rows_read"] += rows_read
                hashes.append(id_hashes)
                on_progress(done, len(shards))
    tell([f"{store.url}/{damage}" for damage in _repeated_ids(shards, hashes)])
    return Verified(
        shards=len(shards),
        rows=sum(shard.rows for shard in shards),
        bytes=sum(shard.bytes for shard in shards),
        num_samples=sum(shard.num_samples for shard in shards),
        **counts,
    )


def _sampled_rows(description: Description, number: int) -> list[int]:
    """Chosen by the content, so that two who look see the same."""
    rows = description.shards[number].rows
    random = np.random.Generator(np.random.Philox(key=name_hash(f"{description.dataset_id} {number}")))
    return sorted(random.choice(rows, min(rows, _FAST_ROWS_PER_SHARD), replace=False).tolist())


def _set_damages(store: Store, written: object, description: Description) -> Iterator[str]:
    """What is wrong with dataset.json itself, with files outside of the set, and with token counts."""
    name = f"{store.url}/dataset.json"
    if description.dataset_id != dataset_id(list(description.shards)):
        yield f"{name}: its dataset_id is not that of the shards it names"
    rows = sum(shard.rows for shard in description.shards)
    if written is not None and written != rows:
        yield f"{name}: says that {written} clips were written, its shards have {rows} rows"
    for outside in description.audio_files:
        file = audio_file(store, outside.path)
        try:
            size = file.store.size(file.name)
        except FileNotFoundError:
            yield f"{file}: is missing; audio of this set is read from there"
            continue
        if size != outside.bytes:
            yield f"{file}: {size} bytes, not {outside.bytes} as when this set was made; its audio is read from there"
    shards = {f"{shard.name}.npy": shard for shard in description.shards}
    for fingerprint in store.folders("tokens"):
        for present in store.names(f"tokens/{fingerprint}"):
            if present in shards:
                yield from _token_damages(store, tokens_file(fingerprint, shards[present].name), shards[present])


def _token_damages(store: Store, name: str, shard: Shard) -> Iterator[str]:
    try:
        if store.size(name) > shard.rows * TOKEN_COUNTS.itemsize + _HEADER_BYTES:
            raise ValueError(f"too large for {shard.rows} rows")
        decode_counts(store.read(name), shard.rows)
    except ValueError as error:
        yield f"{store.url}/{name}: damaged ({error}); delete it, it is made again when it is needed"


def _repeated_ids(shards: Sequence[Shard], hashes: Sequence[NDArray[np.uint64]]) -> Iterator[str]:
    """A line for every row whose utterance an earlier row has too."""
    every = np.concatenate([np.empty(0, np.uint64), *hashes])
    starts = np.cumsum([0, *map(len, hashes)])
    _, first = np.unique(every, return_index=True)
    for position in np.setdiff1d(np.arange(len(every)), first):
        shard = int(np.searchsorted(starts, position, side="right")) - 1
        yield f"{shards[shard].tar} row {position - starts[shard]}: an utterance that an earlier row has too"
