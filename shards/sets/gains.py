"""Emotion gains of a shard set beside its index, for plans and reports: what `shards.targets.gain` measured.

The records hold them; these files spare reading all of those. Where one is missing or damaged it is made from them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.sample import EMOTIONS
from shards.sets.index import Shard, decode_array, encode_array, name_hash
from shards.sets.shard_set import ShardSet
from shards.sets.store import Store

GAIN = np.dtype([("gain", "<f4")])  # nats per token; NaN where it was not measured


def gains_file(shard_name: str) -> str:
    """Where the gains of a shard lie, below the set's root."""
    return f"gains/{shard_name}.npy"


def encode_gains(gains: list[float | None]) -> bytes:
    """The file of a shard."""
    array = np.empty(len(gains), GAIN)
    array["gain"] = [np.nan if gain is None else gain for gain in gains]
    return encode_array(array)


def stored_gains(store: Store, shard_name: str, num_rows: int) -> NDArray[np.float32] | None:
    """float32 [rows]; None where there are none, or not such of this shard."""
    try:
        gains: NDArray[np.float32] = decode_array(store.read(gains_file(shard_name)), GAIN, num_rows)["gain"]
        return gains
    except (FileNotFoundError, ValueError):
        return None


def emotion_gains(shard_set: ShardSet) -> NDArray[np.float32]:
    """float32 [len(shard_set)], NaN where a gain was not measured. Raises CorruptSample, a ValueError, for a record
    that cannot be read."""
    parts, first = [np.empty(0, np.float32)], 0
    for store, shard in shard_set.shards:
        gains = stored_gains(store, shard.name, shard.rows)
        if gains is None:
            gains = _from_records(shard_set, first, store, shard)
        parts.append(gains)
        first += shard.rows
    return np.concatenate(parts)


def _from_records(shard_set: ShardSet, first: int, store: Store, shard: Shard) -> NDArray[np.float32]:
    records = shard_set.records(range(first, first + shard.rows))
    data = encode_gains([None if continuation is None else continuation.gain for _, continuation in records])
    with contextlib.suppress(OSError):  # a read-only or full disk costs time, not correctness
        store.write(gains_file(shard.name), data)
    gains: NDArray[np.float32] = decode_array(data, GAIN, shard.rows)["gain"]
    return gains


def summarised(
    corpora: Iterable[str], corpus: NDArray[np.uint64], emotion: NDArray[np.int8], gains: NDArray[np.float32]
) -> list[dict[str, Any]]:
    """Mean and quantiles of the gains that were measured, for each corpus and emotion of the columns of an index."""
    rows = []
    for name in corpora:
        for label, word in enumerate(EMOTIONS):
            found = gains[(corpus == np.uint64(name_hash(name))) & (emotion == label) & ~np.isnan(gains)]
            if len(found):
                p10, median, p90 = (round(float(value), 4) for value in np.quantile(found, [0.1, 0.5, 0.9]))
                mean = round(float(found.mean(dtype=np.float64)), 4)
                row = {"clips": len(found), "mean": mean, "p10": p10, "median": median, "p90": p90}
                rows.append({"corpus": name, "emotion": word, **row})
    return rows
