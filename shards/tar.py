"""One shard: a plain WebDataset tar, and the index that says where in it each sample lies.

The bytes are a function of the samples alone (no times, no owners), so the same work gives the same file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import webdataset
from numpy.typing import NDArray

from shards.index import INDEX_ROW, OWN_TAR, name_hash
from shards.sample import EMOTIONS, Continuation, Utterance

_BLOCK = 512
_MAX_KEY = 60


@dataclass(frozen=True)
class AudioAt:
    """Audio that stays in another file: `file` is its position in `audio_files` of dataset.json."""

    file: int
    offset: int
    size: int
    crc32: int


def sample_key(utterance_id: str) -> str:
    """The name of a sample's members: readable, only [A-Za-z0-9_-], and unique through the id's hash."""
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', utterance_id)[:_MAX_KEY]}-{name_hash(utterance_id):016x}"


def encode_record(utterance: Utterance, continuation: Continuation | None) -> bytes:
    """What `key.json` holds."""
    record = utterance.to_json()
    if continuation is not None:
        record["continuation"] = continuation.to_json()
    return json.dumps(record, ensure_ascii=False).encode()


class _HashedFile:
    """A file that is hashed as it is written."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("xb")
        self.hash = hashlib.blake2b(digest_size=6)

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class TarShard:
    """Writes samples to a new tar at `path`; after the `with` block the file is on disk, and `index` and `digest`
    (12 hex digits of its bytes) are complete."""

    def __init__(self, path: Path) -> None:
        self._file = _HashedFile(path)
        self._tar = webdataset.TarWriter(self._file, encoder=False, mtime=0, user="", group="")
        self._rows: list[tuple[int, ...]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file.file as file:
            if kind is None:
                self._tar.close()
                file.flush()
                os.fsync(file.fileno())
            else:
                with contextlib.suppress(OSError):  # the disk may be full, which is what the caller is being told
                    self._tar.close()

    def add(
        self, utterance: Utterance, continuation: Continuation | None, audio: bytes | AudioAt, num_samples: int
    ) -> None:
        """Append `key.flac` (if `audio` is a FLAC file) and `key.json`. `num_samples` are at 16 kHz."""
        record = encode_record(utterance, continuation)
        members = {"json": record}
        offset = self._tar.tarstream.offset + _BLOCK
        if isinstance(audio, bytes):
            members["flac"] = audio
            audio = AudioAt(OWN_TAR, offset, len(audio), zlib.crc32(audio))
            offset += _padded(audio.size) + _BLOCK
        self._tar.write({"__key__": sample_key(utterance.id), **members})  # in the order of their names
        assert self._tar.tarstream.offset == offset + _padded(len(record))
        self._rows.append(
            (
                name_hash(utterance.id), name_hash(utterance.corpus), name_hash(utterance.speaker),
                audio.file, audio.offset, audio.size, audio.crc32, num_samples,
                offset, len(record), zlib.crc32(record),
                -1 if utterance.emotion is None else EMOTIONS.index(utterance.emotion),
            )
        )  # fmt: skip

    @property
    def index(self) -> NDArray[np.void]:
        """INDEX_ROW [number of samples added]."""
        return np.array(self._rows, INDEX_ROW)

    @property
    def digest(self) -> str:
        """12 hex digits of the finished tar's BLAKE2b hash."""
        return self._file.hash.hexdigest()


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
