"""One shard: a plain WebDataset tar, and the index that says where in it each sample lies.

The bytes are a function of the samples alone (no times, no owners), so the same work gives the same file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tarfile
import zlib
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from shards.sample import EMOTIONS, Continuation, Utterance
from shards.sets.index import EARLIER_CLIP, INDEX_ROW, OWN_TAR, AudioAt, Index, name_hash

BLOCK = tarfile.BLOCKSIZE
_MAX_KEY = 60


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
    """A new file that is hashed as it is written."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("xb")
        self.hash = hashlib.blake2b(digest_size=6)
        self.size = 0

    def write(self, data: bytes) -> None:
        self.hash.update(data)
        self.file.write(data)
        self.size += len(data)


class TarShard:
    """Writes samples to a new tar at `path`; after the `with` block the file is on disk, and `index` and `digest`
    (12 hex digits of its bytes) are complete."""

    def __init__(self, path: Path) -> None:
        self._file = _HashedFile(path)
        self._rows: list[tuple[int, ...]] = []
        self._earlier: list[tuple[int, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            with contextlib.suppress(OSError):  # the disk may be full, which is what the caller is being told
                self._file.file.close()
            return
        with self._file.file as file:
            self._file.write(bytes(2 * BLOCK + -(self._file.size + 2 * BLOCK) % tarfile.RECORDSIZE))
            file.flush()
            os.fsync(file.fileno())

    def add(
        self,
        utterance: Utterance,
        continuation: Continuation | None,
        audio: bytes | AudioAt,
        num_samples: int,
        teacher: bytes = b"",
    ) -> None:
        """Append `key.flac` (if `audio` is a FLAC file), `key.json` and `key.teacher.npy` (if there is one).

        `num_samples` are at 16 kHz. Of a conversation `audio` holds all clips end to end, and the messages of
        `utterance` say how long each is.
        """
        key, record = sample_key(utterance.id), encode_record(utterance, continuation)
        parts: list[bytes] = []
        offset = self._file.size + BLOCK
        if isinstance(audio, bytes):
            parts += _member(f"{key}.flac", audio)
            audio = AudioAt(OWN_TAR, offset, len(audio), zlib.crc32(audio))
            offset += padded(audio.size) + BLOCK
        parts += _member(f"{key}.json", record)
        end = offset + padded(len(record))
        if teacher:
            parts += _member(f"{key}.teacher.npy", teacher)
            end += BLOCK + padded(len(teacher))
        self._file.write(b"".join(parts))
        assert self._file.size == end
        self._earlier += [(len(self._rows), length) for length in utterance.earlier_samples]
        self._rows.append(
            (
                name_hash(utterance.id), name_hash(utterance.corpus), name_hash(utterance.speaker),
                audio.file, audio.offset, audio.size, audio.crc32, num_samples,
                offset, len(record), zlib.crc32(record),
                len(teacher), zlib.crc32(teacher),
                -1 if utterance.emotion is None else EMOTIONS.index(utterance.emotion),
            )
        )  # fmt: skip

    @property
    def index(self) -> Index:
        """That of the samples added."""
        return Index(np.array(self._rows, INDEX_ROW), np.array(self._earlier, EARLIER_CLIP))

    @property
    def digest(self) -> str:
        """12 hex digits of the finished tar's BLAKE2b hash."""
        return self._file.hash.hexdigest()


def padded(size: int) -> int:
    """Bytes that a member of `size` takes in a tar."""
    return -(-size // BLOCK) * BLOCK


def member_header(name: str, size: int) -> bytes:
    """What stands before a file: no owner, no time, read-only."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o444
    return info.tobuf(tarfile.USTAR_FORMAT)


def _member(name: str, data: bytes) -> tuple[bytes, bytes, bytes]:
    """Header, content and padding of one file."""
    return member_header(name, len(data)), data, bytes(padded(len(data)) - len(data))
