"""A finished shard set, any sample one `pread` away.

    dataset.json                  identity, counts, provenance, the shards in order; written last
    shards/000003-1f2e3d4c5b6a.tar  plain WebDataset: key.flac, key.json
    index/000003-1f2e3d4c5b6a.npy   one INDEX_ROW per sample of that tar
    tokens/<template>.npy         token counts for one tokenizer, made on first use

Readers open what dataset.json names and nothing else: leftovers of killed runs do not exist for them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cluster.files import write_atomically
from shards.audio import AudioError, decode_flac
from shards.prompts import ChatTemplate
from shards.sample import Continuation, Utterance

FORMAT = 1
INDEX_ROW = np.dtype(
    [
        ("id_hash", "<u8"),  # of the utterance's id; keys every random draw
        ("flac_offset", "<u8"), ("flac_size", "<u4"), ("flac_crc32", "<u4"),
        ("json_offset", "<u8"), ("json_size", "<u4"), ("json_crc32", "<u4"),
        ("num_samples", "<u4"),
        ("emotion", "i1"),  # position in EMOTIONS, -1 for none
    ]
)  # fmt: skip
_ROW = np.dtype([("shard", "<u4"), *INDEX_ROW.descr])
TOKEN_COUNTS = np.dtype([("num_text_tokens", "<u4"), ("num_response_tokens", "<u4")])

_MAX_OPEN_SHARDS = 64


def id_hash(utterance_id: str) -> int:
    """64 bits that spread ids evenly: the order of samples in shards and every random draw depend on it."""
    return int.from_bytes(hashlib.blake2b(utterance_id.encode(), digest_size=8).digest(), "little")


class CorruptSample(ValueError):
    """A sample whose bytes are not those that were written; names the shard and the row."""


@dataclass(frozen=True)
class Sample:
    """One utterance with what the LLM wrote for it. `waveform` is int16 [num_samples] at 16 kHz."""

    utterance: Utterance
    continuation: Continuation
    waveform: NDArray[np.int16]


class ShardSet:
    """The samples of a folder that `blsp shard` finished. `rows` is the whole index with a column `shard`."""

    def __init__(self, path: Path, description: dict[str, Any], rows: NDArray[np.void]) -> None:
        self.path = path
        self.rows = rows
        self.dataset_id: str = description["dataset_id"]
        self.prompt: str = description["prompt"]
        self._shards = [path / "shards" / f"{shard['name']}.tar" for shard in description["shards"]]
        self._open_files: dict[int, int] = {}

    @classmethod
    def open(cls, path: Path) -> Self:
        """Raises ValueError, with the remedy, for a folder that is unfinished, damaged or no shard set."""
        try:
            description = json.loads((path / "dataset.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            if (path / "job.json").is_file():
                raise ValueError(f"{path}: unfinished; run the same `blsp shard` again, it goes on") from None
            raise ValueError(f"{path}: not a shard set; make one with `blsp shard RECIPE`") from None
        except ValueError as error:
            raise ValueError(f"{path / 'dataset.json'}: damaged ({error}); make the shard set again") from None
        if description.get("format") != FORMAT:
            raise ValueError(
                f"{path}: format {description.get('format')!r}, this version reads {FORMAT}; make it again"
            )
        parts = []
        for number, shard in enumerate(description["shards"]):
            parts.append(np.empty(shard["rows"], _ROW))
            parts[-1]["shard"] = number
            index = _read_index(path, shard)
            for name in INDEX_ROW.names or ():
                parts[-1][name] = index[name]
        return cls(path, description, np.concatenate(parts))

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, row: int) -> Sample:
        """Raises CorruptSample when the bytes are not those written; OSError when they cannot be read at all."""
        entry = self.rows[row]
        start = int(entry["flac_offset"])
        data = self._pread(row, start, int(entry["json_offset"]) + int(entry["json_size"]) - start)
        flac, record = data[: entry["flac_size"]], data[int(entry["json_offset"]) - start :]
        if zlib.crc32(flac) != entry["flac_crc32"]:
            raise CorruptSample(f"{self._where(row)}: the audio fails its checksum")
        utterance, continuation = self._parse(row, record)
        try:
            return Sample(utterance, continuation, decode_flac(flac))
        except AudioError as error:
            raise CorruptSample(f"{self._where(row)}: {error}") from None

    def record(self, row: int) -> tuple[Utterance, Continuation]:
        """The sample without its audio. Raises as `read`."""
        entry = self.rows[row]
        return self._parse(row, self._pread(row, int(entry["json_offset"]), int(entry["json_size"])))

    def _parse(self, row: int, data: bytes) -> tuple[Utterance, Continuation]:
        if zlib.crc32(data) != self.rows[row]["json_crc32"]:
            raise CorruptSample(f"{self._where(row)}: the record fails its checksum")
        record = json.loads(data)
        continuation = Continuation.from_json(record.pop("continuation"))
        return Utterance.from_json(record), continuation

    def _pread(self, row: int, offset: int, size: int) -> bytes:
        shard = int(self.rows[row]["shard"])
        if shard not in self._open_files:
            if len(self._open_files) >= _MAX_OPEN_SHARDS:
                os.close(self._open_files.pop(next(iter(self._open_files))))
            self._open_files[shard] = os.open(self._shards[shard], os.O_RDONLY)
        data = os.pread(self._open_files[shard], size, offset)
        if len(data) != size:
            raise CorruptSample(f"{self._where(row)}: the shard ends inside this sample")
        return data

    def _where(self, row: int) -> str:
        shard = int(self.rows[row]["shard"])
        first = int(np.searchsorted(self.rows["shard"], shard))
        return f"{self._shards[shard]} row {row - first}"

    def __del__(self) -> None:
        for descriptor in getattr(self, "_open_files", {}).values():
            os.close(descriptor)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open_files": {}}  # a file descriptor means nothing in another process


def _read_index(path: Path, shard: dict[str, Any]) -> NDArray[np.void]:
    """The index of one shard, checked against dataset.json and the size of the tar."""
    tar, index = path / "shards" / f"{shard['name']}.tar", path / "index" / f"{shard['name']}.npy"
    try:
        size = tar.stat().st_size
        rows: NDArray[np.void] = np.load(index, allow_pickle=False)
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename}: is missing; copy the shard set again, or make it again") from None
    except (ValueError, EOFError) as error:
        raise ValueError(f"{index}: damaged ({error}); copy the shard set again, or make it again") from None
    if size != shard["bytes"]:
        raise ValueError(f"{tar}: {size} bytes, written were {shard['bytes']}; copy the shard set again")
    if rows.dtype != INDEX_ROW or len(rows) != shard["rows"]:
        raise ValueError(f"{index}: not the index of {tar.name}; copy the shard set again, or make it again")
    return rows


def token_counts(shard_set: ShardSet, template: ChatTemplate) -> NDArray[np.void]:
    """TOKEN_COUNTS [len(shard_set)]: tokens of each transcript and of each response, end of turn included.

    Counted once per tokenizer and kept in the shard set; where that folder is read-only they are counted each time.
    """
    path = shard_set.path / "tokens" / f"{template.fingerprint}.npy"
    if path.is_file():
        counts: NDArray[np.void] = np.load(path, allow_pickle=False)
        if counts.dtype == TOKEN_COUNTS and len(counts) == len(shard_set):
            return counts
    counts = np.empty(len(shard_set), TOKEN_COUNTS)
    for row in range(len(shard_set)):
        utterance, continuation = shard_set.record(row)
        response = template.response(continuation.text, continuation.finished)
        counts[row] = (len(template.encode(utterance.text)), len(response))
    content = io.BytesIO()
    np.save(content, counts, allow_pickle=False)
    with contextlib.suppress(OSError):  # a read-only or full disk costs time, not correctness
        write_atomically(path, content.getvalue())
    return counts
