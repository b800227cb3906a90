"""One shard: a plain WebDataset tar, and the index that says where in it each sample lies.

The bytes are a function of the samples alone (no times, no owners), so the same work gives the same file.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import zlib
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import webdataset
from numpy.typing import NDArray

from shards.index import INDEX_ROW, id_hash
from shards.sample import EMOTIONS, Continuation, Utterance

_BLOCK = 512
_MAX_KEY = 60


def sample_key(utterance_id: str) -> str:
    """The name of a sample's members: readable, only [A-Za-z0-9_-], and unique through the id's hash."""
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', utterance_id)[:_MAX_KEY]}-{id_hash(utterance_id):016x}"


class TarShard:
    """Writes samples to a new tar at `path`; after the `with` block the file is on disk and `index` is complete."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self._tar = webdataset.TarWriter(self._file, encoder=False, mtime=0, user="", group="")
        self._rows: list[tuple[int, ...]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                self._tar.close()
                self._file.flush()
                os.fsync(self._file.fileno())
            else:
                with contextlib.suppress(OSError):  # the disk may be full, which is what the caller is being told
                    self._tar.close()

    def add(self, utterance: Utterance, continuation: Continuation, flac: bytes, num_samples: int) -> None:
        """Append `key.flac` and `key.json`."""
        record = json.dumps(
            {**utterance.to_json(), "continuation": continuation.to_json()}, ensure_ascii=False
        ).encode()
        flac_offset = self._tar.tarstream.offset + _BLOCK
        json_offset = flac_offset + -(-len(flac) // _BLOCK) * _BLOCK + _BLOCK
        self._tar.write({"__key__": sample_key(utterance.id), "flac": flac, "json": record})
        assert self._tar.tarstream.offset == json_offset + -(-len(record) // _BLOCK) * _BLOCK
        emotion = -1 if utterance.emotion is None else EMOTIONS.index(utterance.emotion)
        self._rows.append(
            (
                id_hash(utterance.id),
                flac_offset, len(flac), zlib.crc32(flac),
                json_offset, len(record), zlib.crc32(record),
                num_samples,
                emotion,
            )
        )  # fmt: skip

    @property
    def index(self) -> NDArray[np.void]:
        """INDEX_ROW [number of samples added]."""
        return np.array(self._rows, INDEX_ROW)
