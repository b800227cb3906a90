"""What LLMs have written so far, in files that are only ever appended to: a killed job asks for nothing twice.

    <folder>/<16 hex digits of the writer's name>/<host>-<process>-<8 hex digits>.jsonl

Each process has a file of its own, so that actors and hosts never write into each other's. Its first line names the
writer; each other line is one generation, under the hash of all that its LLM was shown. A line is the operating
system's as soon as it is written, and is on the disk with 63 others: a process that is killed loses what it had in
work, a host that loses its power at most 64 generations. Half a line, the last of a process that was killed, is none.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from shards.writers.protocol import Generation

_GENERATIONS_PER_SYNC = 64
_FEWEST_MEASURED = 32
_KEY_BYTES = 16
_BEGINS = b'{"key": "'
_MAX_LINE_BYTES = 2**20
_OFFSET_BITS = 44  # of a place: 16 TB of each of a million files


def key_of(writer: str, prompt: object) -> str:
    """32 hex digits of the writer's name and of what its LLM is shown (token ids, or messages)."""
    shown = json.dumps([writer, prompt], ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(shown.encode("utf-8", "surrogatepass"), digest_size=_KEY_BYTES).hexdigest()


class Generations:
    """Those of one writer. 16 bytes of each stay in memory."""

    def __init__(self, folder: Path, writer: str) -> None:
        """Finds what all processes have left so far. Raises OSError when the folder cannot be read."""
        self._writer = writer
        self._folder = folder / hashlib.blake2b(writer.encode(), digest_size=8).hexdigest()
        self._files = sorted(path for path in self._folder.glob("*.jsonl") if self._is_of_writer(path))
        self._open: dict[int, BinaryIO] = {}
        self._hashes, self._places = self._scan()
        self._out: int | None = None
        self._unsynced = 0
        self._began = 0.0

    def _is_of_writer(self, path: Path) -> bool:
        with path.open("rb") as file:
            return _record(file.readline(_MAX_LINE_BYTES)).get("writer") == self._writer

    def _scan(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """The first 64 bits of every key, sorted, and where its line stands."""
        hashes, places = array("Q"), array("Q")
        for number, path in enumerate(self._files):
            offset = 0
            with path.open("rb") as file:
                while line := file.readline(_MAX_LINE_BYTES):
                    if line.startswith(_BEGINS) and line.endswith(b"\n"):
                        digits = line[len(_BEGINS) : len(_BEGINS) + 16]
                        try:
                            hashes.append(int(digits, 16))
                            places.append(number << _OFFSET_BITS | offset)
                        except ValueError:
                            pass  # a damaged line; its generation is made again
                    offset += len(line)
        order = np.argsort(np.array(hashes, np.uint64), kind="stable")
        return np.array(hashes, np.uint64)[order], np.array(places, np.uint64)[order]

    def __len__(self) -> int:
        return len(self._hashes)

    def get(self, key: str) -> Generation | None:
        """What was written under the key before this process began, None for nothing."""
        self._began = self._began or round(time.time(), 3)  # the writer has begun: its rate counts from here
        first = np.uint64(int(key[:16], 16))
        begin, end = (int(np.searchsorted(self._hashes, first, side)) for side in ("left", "right"))
        for place in self._places[begin:end].tolist():
            record = _record(self._line(place >> _OFFSET_BITS, place & (1 << _OFFSET_BITS) - 1))
            if record.get("key") == key and (found := _generation(record)) is not None:
                return found
        return None

    def _line(self, number: int, offset: int) -> bytes:
        if number not in self._open:
            self._open[number] = self._files[number].open("rb")
        self._open[number].seek(offset)
        return self._open[number].readline(_MAX_LINE_BYTES)

    def put(self, key: str, generation: Generation) -> None:
        """Keep it. Raises OSError when the disk is full."""
        self._append({"key": key, **vars(generation)})

    def put_unusable(self, prompt_tokens: int, new_tokens: int) -> None:
        """Keep that an answer which nobody can use was read and written, for it was paid for."""
        self._append({"unusable": True, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens})

    def _append(self, record: dict[str, object]) -> None:
        if self._out is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
            self._out = os.open(self._folder / name, flags, 0o666)
            _write(self._out, {"writer": self._writer, "began": self._began})
        _write(self._out, record)
        self._unsynced += 1
        if self._unsynced >= _GENERATIONS_PER_SYNC:
            self.sync()

    def sync(self) -> None:
        """What was put so far outlives the host."""
        if self._out is not None and self._unsynced:
            os.fsync(self._out)
            self._unsynced = 0

    def tokens(self) -> tuple[int, int]:
        """Read and written for all that lies here, the unusable included."""
        prompt_tokens = new_tokens = 0
        for record in self._records():
            read, written = record.get("prompt_tokens"), record.get("new_tokens")
            if isinstance(read, int) and isinstance(written, int):
                prompt_tokens += read
                new_tokens += written
        return prompt_tokens, new_tokens

    def _records(self) -> Iterator[dict[str, object]]:
        for path in self._files:
            with path.open("rb") as file:
                while line := file.readline(_MAX_LINE_BYTES):
                    yield _record(line)


def measured_rate(folder: Path, llm: str) -> float | None:
    """Generations a second of the process that last wrote at least 32 of them here with an LLM of that name (without
    its version); None where there is none."""
    best: tuple[float, float] | None = None
    for path in folder.glob("*/*.jsonl"):
        with path.open("rb") as file:
            head = _record(file.readline(_MAX_LINE_BYTES))
            number = sum(line.startswith(_BEGINS) for line in file)
        began, ended = head.get("began"), path.stat().st_mtime
        if not isinstance(began, float) or number < _FEWEST_MEASURED or ended <= began:
            continue
        if str(head.get("writer")).startswith(f"{llm}@") and (best is None or ended > best[0]):
            best = ended, number / (ended - began)
    return None if best is None else best[1]


def _write(file: int, record: dict[str, object]) -> None:
    line = memoryview(json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
    while line:
        line = line[os.write(file, line) :]


def _record(line: bytes) -> dict[str, object]:
    """An empty one for a line that is torn or damaged."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _generation(record: dict[str, object]) -> Generation | None:
    types = {"text": str, "finished": bool, "prompt_tokens": int, "new_tokens": int}
    if any(type(record.get(name)) is not wanted for name, wanted in types.items()):
        return None
    return Generation(**{name: record[name] for name in types})  # type: ignore[arg-type]
