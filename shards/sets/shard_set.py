"""Finished shard sets, any sample one read away: the audio and the record of a row, wherever each of them lies."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shards.audio import AudioError, decode_audio, decode_flac
from shards.prompts import REPLAYED
from shards.sample import Continuation, Utterance
from shards.sets.index import (
    INDEX_ROW,
    OWN_TAR,
    AudioFile,
    Description,
    Index,
    Shard,
    decode_array,
    earlier_samples,
    name_hash,
    read_description,
    read_index,
    record_end,
    teacher_offset,
)
from shards.sets.reads import Range
from shards.sets.store import Store, is_url, open_store

_ROW = np.dtype([("shard", "<u4"), *INDEX_ROW.descr])
_EARLIER = np.dtype([("row", "<i8"), ("num_samples", "<i8")])
_INDEXES_AT_ONCE = 8


def no_continuations(url: str) -> str:
    """Why this set trains nothing, and what helps."""
    return f"{url}: holds no continuations; write some with `base: {url}` in a shard recipe"


class CorruptSample(ValueError):
    """A sample whose bytes are not those that were written; names the shard and the row."""


@dataclass(frozen=True)
class Sample:
    """One utterance with what the LLM wrote for it. `waveform` is int16 [num_samples] at 16 kHz, of a conversation all
    clips end to end; `teacher` the rows of a TeacherSpec, one per response token, where they were asked for."""

    utterance: Utterance
    continuation: Continuation
    waveform: NDArray[np.int16]
    teacher: NDArray[np.void] | None = None

    @property
    def clips(self) -> list[NDArray[np.int16]]:
        """The waveform of each turn that is heard, in order; the utterance's own is the last."""
        return np.split(self.waveform, np.cumsum(self.utterance.earlier_samples, dtype=np.int64))


@dataclass(frozen=True)
class StoredFile:
    """A file, and the store through which it is read."""

    store: Store
    name: str

    def __str__(self) -> str:
        path = f"{self.store.url}/{self.name}"
        return path if is_url(path) else os.path.normpath(Path(self.store.url) / self.name)


class ShardSet:
    """The samples of one or more shard sets, read as one.

    `rows` are all indexes, end to end, with a column `shard`; `replayed` (bool [n]) says which of them are there to be
    replayed; `licences` the (corpus, licence, clips) of all. Of the others: `corpora` the
    name of each corpus with its hash in `rows`; `prompt` the one that the continuations were written under, None when
    there are none; `teacher` what is kept of the LLM's predictions, None for nothing. `writers` wrote the
    continuations, in answer to prompts in `languages`.
    """

    def __init__(self, stores: Sequence[Store], descriptions: Sequence[Description], num_replayed: int = 0) -> None:
        """The last `num_replayed` sets are replayed. Raises ValueError for a damaged index, or sets that do not go
        together."""
        num_own = len(stores) - num_replayed
        assert num_own > 0
        self.url = ", ".join(store.url for store in stores)
        self.dataset_id = "+".join(description.dataset_id for description in descriptions)
        self.prompt = descriptions[0].prompt
        self.teacher = descriptions[0].teacher
        self.writers = _united(about.writers for about in descriptions)
        self.languages = _united(about.languages for about in descriptions)
        self.licences = tuple(row for about in descriptions for row in about.clips)
        self.corpora = {name: name_hash(name) for about in descriptions[:num_own] for name in about.corpora}
        self.shards: list[tuple[Store, Shard]] = []
        self._audio_files: list[StoredFile] = []
        parts, earlier, first = [], [np.empty(0, _EARLIER)], 0
        for number, (store, description) in enumerate(zip(stores, descriptions, strict=True)):
            if (description.prompt is None) != (self.prompt is None):
                without = store if description.prompt is None else stores[0]
                raise ValueError(
                    f"{without.url}: holds no continuations, others of these sets do; an overlay (made with "
                    "`base: SET`) holds the clips of its base and is read without it"
                )
            if not (own := number < num_own) and description.prompt != REPLAYED:
                raise ValueError(
                    f"{store.url}: its continuations were written under {description.prompt!r}; data.replay keeps the "
                    f"plain behaviour and takes only sets that were written under {REPLAYED!r}"
                )
            if own and description.prompt != self.prompt:
                raise ValueError(
                    f"{store.url}: its continuations were written under {description.prompt!r}, those of "
                    f"{stores[0].url} under {self.prompt!r}; only sets of one prompt can be read together; those "
                    f"under {REPLAYED!r} can be replayed beside others: data.replay"
                )
            if own and description.teacher != self.teacher:
                raise ValueError(
                    f"{store.url}: its teacher is {description.teacher}, that of {stores[0].url} {self.teacher}; only "
                    "sets written alike can be read together"
                )
            for shard, index in zip(description.shards, _indexes(store, description), strict=True):
                parts.append(np.empty(shard.rows, _ROW))
                parts[-1]["shard"] = len(self.shards)
                rows = index.rows
                rows["audio_file"][rows["audio_file"] != OWN_TAR] += len(self._audio_files)
                for name in INDEX_ROW.names or ():
                    parts[-1][name] = rows[name]
                earlier.append(index.earlier.astype(_EARLIER))
                earlier[-1]["row"] += first
                first += shard.rows
                self.shards.append((store, shard))
            self._audio_files += _outside_files(store, description)
        self.rows: NDArray[np.void] = np.concatenate(parts) if parts else np.empty(0, _ROW)
        self._earlier: NDArray[np.void] = np.concatenate(earlier)
        num_own_shards = sum(len(description.shards) for description in descriptions[:num_own])
        self.replayed: NDArray[np.bool_] = self.rows["shard"] >= num_own_shards
        if len(stores) > 1 and any(_repeats(self.rows["id_hash"][part]) for part in (~self.replayed, self.replayed)):
            raise ValueError(
                f"{self.url}: some utterances are in more than one of these sets; name each set once, and an overlay "
                "(made with `base: SET`) without its base, whose clips it holds"
            )

    @classmethod
    def open(cls, *roots: str | Path, replay: Sequence[str | Path] = ()) -> Self:
        """The sets in `roots`, and those in `replay` to be replayed beside them: the same clips may be in both.

        Raises ValueError, with the remedy, for a root that is unfinished, damaged or no shard set.
        """
        stores = [open_store(root) for root in (*roots, *replay)]
        return cls(stores, [read_description(store) for store in stores], len(replay))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def all_corpora(self) -> list[str]:
        """Names of the corpora, the replayed ones too."""
        return sorted({name for name, _, _ in self.licences})

    @property
    def clips(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(num_samples, row) of every clip, in order: a sample has one for each turn that is heard."""
        earlier_rows, earlier = self._earlier["row"], self._earlier["num_samples"]
        last = self.rows["num_samples"].astype(np.int64)
        np.subtract.at(last, earlier_rows, earlier)
        rows = np.concatenate([earlier_rows, np.arange(len(self))])
        order = np.argsort(rows, kind="stable")  # the last clip of a row comes behind its others
        return np.concatenate([earlier, last])[order], rows[order]

    def read(self, row: int) -> Sample:
        """Raises CorruptSample when the bytes are not those written; OSError when they cannot be read at all."""
        sample = self.read_many([row])[0]
        if isinstance(sample, CorruptSample):
            raise sample
        return sample

    def read_many(self, rows: Sequence[int], with_teacher: bool = False) -> list[Sample | CorruptSample]:
        """The samples of several rows, fetched together; a corrupt one is returned, not raised.

        Raises OSError when a store cannot be read, and ValueError for a set without continuations.
        """
        return [self._sample(row, *parts) for row, parts in zip(rows, self._fetch(rows, with_teacher), strict=True)]

    def record(self, row: int) -> tuple[Utterance, Continuation | None]:
        """The sample without its audio. Raises as `read`."""
        return self.records([row])[0]

    def records(self, rows: Sequence[int]) -> list[tuple[Utterance, Continuation | None]]:
        """The samples of several rows without their audio, fetched together. Raises as `read`."""
        parts = self._read_ranges([self._json_range(row) for row in rows])
        return [self._parse(row, part) for row, part in zip(rows, parts, strict=True)]

    def audio(self, row: int) -> NDArray[np.int16]:
        """The sample's audio, int16 [num_samples] at 16 kHz. Raises as `read`."""
        return self._decode(row, self.audio_bytes(row))

    def audio_bytes(self, row: int) -> bytes:
        """The sample's audio as it lies there: a FLAC file, or another if others wrote the tar. Raises as `read`."""
        (data,) = self._read_ranges([self._audio_range(row)])
        self._check(row, data, "audio")
        return data

    def teacher_bytes(self, row: int) -> bytes:
        """The sample's `key.teacher.npy`; empty where there is none. Raises as `read`."""
        entry = self.rows[row]
        size, offset = int(entry["teacher_size"]), int(teacher_offset(entry))
        if not size:
            return b""
        (data,) = self._read_ranges([(self._tar(row), offset, size)])
        self._check(row, data, "teacher")
        return data

    def where(self, row: int) -> str:
        """The tar and the row within it, for messages."""
        return f"{self._tar(row)} row {row - int(np.searchsorted(self.rows['shard'], self.rows[row]['shard']))}"

    def _sample(self, row: int, audio: bytes, record: bytes, teacher: bytes) -> Sample | CorruptSample:
        try:
            try:
                self._check(row, audio, "audio")
                utterance, continuation = self._parse(row, record)
                if teacher:
                    self._check(row, teacher, "teacher")
            except CorruptSample:  # once more, alone: a network can garble what the disk holds intact
                audio, (utterance, continuation) = self.audio_bytes(row), self.record(row)
                teacher = self.teacher_bytes(row) if teacher else b""
            waveform = self._decode(row, audio)
            predicted = self._decode_teacher(row, teacher) if teacher else None
        except CorruptSample as error:
            return error
        if continuation is None:
            raise ValueError(no_continuations(self.url))
        if utterance.earlier_samples != earlier_samples(self._earlier, row):
            return CorruptSample(f"{self.where(row)}: record and index do not agree on the clips of messages")
        return Sample(utterance, continuation, waveform, predicted)

    def _decode(self, row: int, audio: bytes) -> NDArray[np.int16]:
        entry = self.rows[row]
        try:
            samples = decode_flac(audio) if entry["audio_file"] == OWN_TAR else decode_audio(audio)
        except AudioError as error:
            raise CorruptSample(f"{self.where(row)}: {error}") from None
        if len(samples) != entry["num_samples"]:
            raise CorruptSample(
                f"{self.where(row)}: the audio has {len(samples)} samples, the index says {entry['num_samples']}"
            )
        return samples

    def _decode_teacher(self, row: int, data: bytes) -> NDArray[np.void]:
        if self.teacher is None:
            raise CorruptSample(f"{self.where(row)}: dataset.json knows of no teacher")
        try:
            return decode_array(data, self.teacher.row, None)
        except ValueError as error:
            raise CorruptSample(f"{self.where(row)}: the teacher's file cannot be read ({error})") from None

    def _parse(self, row: int, data: bytes) -> tuple[Utterance, Continuation | None]:
        self._check(row, data, "json")
        try:
            return parse_record(data)
        except ValueError as error:
            raise CorruptSample(f"{self.where(row)}: {error}") from None

    def _check(self, row: int, data: bytes, part: str) -> None:
        what = {"audio": "audio", "json": "record", "teacher": "teacher's file"}[part]
        if len(data) != self.rows[row][f"{part}_size"]:
            raise CorruptSample(f"{self.where(row)}: the file ends inside the {what}")
        if zlib.crc32(data) != self.rows[row][f"{part}_crc32"]:
            raise CorruptSample(f"{self.where(row)}: the {what} fails its checksum")

    def _fetch(self, rows: Sequence[int], with_teacher: bool) -> Iterator[tuple[bytes, bytes, bytes]]:
        """(audio, record, teacher or nothing) of each row; one range for all that lie side by side."""
        ranges: list[tuple[StoredFile, int, int]] = []
        for row in rows:
            (file, start, size), (tar, json_start, json_size) = self._audio_range(row), self._json_range(row)
            end = int(record_end(self.rows[row])) if with_teacher else json_start + json_size
            if file == tar:
                ranges.append((file, start, end - start))
            else:
                ranges += [(file, start, size), (tar, json_start, end - json_start)]
        data = iter(self._read_ranges(ranges))
        for row in rows:
            entry, first = self.rows[row], next(data)
            if entry["audio_file"] == OWN_TAR:
                json_start = int(entry["json_offset"]) - int(entry["audio_offset"])
                audio, rest = first[: entry["audio_size"]], first[json_start:]
            else:
                audio, rest = first, next(data)
            teacher = rest[int(teacher_offset(entry) - entry["json_offset"]) :] if with_teacher else b""
            yield audio, rest[: entry["json_size"]], teacher

    def _read_ranges(self, ranges: Sequence[tuple[StoredFile, int, int]]) -> list[bytes]:
        by_store: dict[str, list[int]] = {}
        for i, (file, _, _) in enumerate(ranges):
            by_store.setdefault(file.store.url, []).append(i)
        data = [b""] * len(ranges)
        for places in by_store.values():
            wanted: list[Range] = [(ranges[i][0].name, ranges[i][1], ranges[i][2]) for i in places]
            for i, part in zip(places, ranges[places[0]][0].store.read_ranges(wanted), strict=True):
                data[i] = part
        return data

    def _tar(self, row: int) -> StoredFile:
        store, shard = self.shards[int(self.rows[row]["shard"])]
        return StoredFile(store, shard.tar)

    def _audio_range(self, row: int) -> tuple[StoredFile, int, int]:
        entry = self.rows[row]
        file = self._tar(row) if entry["audio_file"] == OWN_TAR else self._audio_files[int(entry["audio_file"])]
        return file, int(entry["audio_offset"]), int(entry["audio_size"])

    def _json_range(self, row: int) -> tuple[StoredFile, int, int]:
        entry = self.rows[row]
        return self._tar(row), int(entry["json_offset"]), int(entry["json_size"])


def _united(names: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for each in names for name in each))


def _repeats(hashes: NDArray[np.uint64]) -> bool:
    return len(np.unique(hashes)) < len(hashes)


def _indexes(store: Store, description: Description) -> Iterator[Index]:
    """The index of each shard; several at a time, since a bucket takes its time for each."""
    with ThreadPoolExecutor(_INDEXES_AT_ONCE) as pool:
        yield from pool.map(lambda shard: read_index(store, description, shard), description.shards)


def parse_record(data: bytes) -> tuple[Utterance, Continuation | None]:
    """What `key.json` holds. Raises ValueError when it is no such record."""
    try:
        record = json.loads(data)
        continuation = record.pop("continuation", None)
        utterance = Utterance.from_json(record)
        _ = utterance.earlier_samples  # raises where the length of a clip is missing
        return utterance, None if continuation is None else Continuation.from_json(continuation)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the record cannot be read ({error})") from None


def audio_file(store: Store, path: str, opened: dict[str, Store] | None = None) -> StoredFile:
    """The file that a path in `audio_files` of the set in `store` means. Other stores are kept in `opened`."""
    if not is_url(path) and not (path.startswith("/") and is_url(store.url)):
        return StoredFile(store, path)
    folder, _, name = path.rpartition("/")
    opened = {} if opened is None else opened
    if folder not in opened:
        opened[folder] = open_store(folder or "/")
    return StoredFile(opened[folder], name)


def _outside_files(store: Store, description: Description) -> list[StoredFile]:
    """The files of others in which audio of this set lies. Raises ValueError when one is not as it was."""
    opened: dict[str, Store] = {}
    files = [audio_file(store, outside.path, opened) for outside in description.audio_files]

    def check(file: StoredFile, outside: AudioFile) -> None:
        try:
            size = file.store.size(file.name)
        except FileNotFoundError:
            raise ValueError(f"{file}: is missing; audio of {store.url} is read from there") from None
        if size != outside.bytes:
            raise ValueError(
                f"{file}: {size} bytes, not {outside.bytes} as when {store.url} was made; its audio is read from there"
            )

    with ThreadPoolExecutor(_INDEXES_AT_ONCE) as pool:
        for _ in pool.map(check, files, description.audio_files):
            pass
    return files
