"""One shard under the magnifier: its tar byte by byte, its index, and every sample that both speak of.

A tar is read once, row after row, and hashed on the way: memory holds one sample, never a tar.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shards.audio import AudioError, decode_audio, decode_flac
from shards.prompts import in_language
from shards.sample import EMOTIONS, Utterance
from shards.sets.index import (
    EARLIER_CLIP,
    OWN_TAR,
    Description,
    Shard,
    decode_array,
    earlier_samples,
    missing,
    name_hash,
    read_rows,
    record_end,
    teacher_offset,
)
from shards.sets.shard_set import StoredFile, audio_file, parse_record
from shards.sets.store import Store
from shards.sets.tar import BLOCK, member_header, padded, sample_key

_CHUNK_BYTES = 8 * 2**20

Inspect = Callable[[Utterance], str | None]


@dataclass
class ShardCheck:
    """Looks at one shard; `damages` are lines, each with the file, the row if it is one row's, and what is wrong.

    `inspect` may object to an utterance whose bytes are intact.
    """

    store: Store
    description: Description
    shard: Shard
    inspect: Inspect | None = None
    damages: list[str] = field(default_factory=list)
    id_hashes: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    rows_read: int = 0
    _earlier: NDArray[np.void] = field(default_factory=lambda: np.empty(0, EARLIER_CLIP))
    _opened: dict[str, Store] = field(default_factory=dict)

    def run(self, chosen: Sequence[int] | None = None) -> None:
        """Look at all of it (None), or at the sizes, the index and the chosen rows."""
        try:
            self._run(chosen)
        except OSError as error:  # the other shards may lie on a better disk
            self._tell(f"cannot be read ({error.strerror or error})")

    def _run(self, chosen: Sequence[int] | None) -> None:
        size = self._tar_size()
        try:
            index = read_rows(self.store, self.description.audio_files, self.shard)
        except ValueError as error:
            self.damages.append(str(error))
            if chosen is None and size == self.shard.bytes:
                self._finish_hash(hashlib.blake2b(digest_size=6), 0, rows_known=False)
            return
        rows, self._earlier = index.rows, index.earlier
        self.id_hashes = rows["id_hash"].copy()
        if index.num_samples != self.shard.num_samples:
            self._tell(f"its rows add up to {index.num_samples} samples, dataset.json says {self.shard.num_samples}")
        if size is not None and size != self.shard.bytes:
            lost = [i for i, row in enumerate(rows) if _end(row) > size]
            which = f"; lost with it are rows {lost[0]} to {lost[-1]}" if lost else ""
            self._tell(f"{size} bytes, written were {self.shard.bytes}{which}")
        if size is not None and chosen is None:
            self._look_at_all(rows, size)
        elif size is not None and chosen is not None:
            for i in chosen:
                if _end(rows[i]) <= size:
                    self._look_at(i, rows[i])

    def _tar_size(self) -> int | None:
        try:
            return self.store.size(self.shard.tar)
        except FileNotFoundError:
            self.damages.append(str(missing(self.store, self.shard.tar)))
            return None

    def _tell(self, what: str, row: int | None = None) -> None:
        where = self.shard.tar if row is None else f"{self.shard.tar} row {row}"
        self.damages.append(f"{self.store.url}/{where}: {what}")

    def _read(self, offset: int, size: int) -> bytes:
        return self.store.read_ranges([(self.shard.tar, offset, size)])[0]

    def _look_at_all(self, rows: NDArray[np.void], size: int) -> None:
        """The rows must lie end to end from the first byte on, so that no byte of the tar is left out."""
        hashed, position = hashlib.blake2b(digest_size=6), 0
        for i, row in enumerate(rows):
            if _end(row) > size:
                return
            if _begin(row) != position or _record_begin(row) != row["json_offset"]:
                self._tell("the index does not point at the tar's next member; later rows were not looked at", i)
                return
            hashed.update(self._look_at(i, row))
            position = _end(row)
        if size == self.shard.bytes:
            self._finish_hash(hashed, position, rows_known=True)

    def _finish_hash(self, hashed: hashlib.blake2b, position: int, *, rows_known: bool) -> None:
        """Hash what is left of a tar of the right size, which must be zeros if all rows are known to lie before it."""
        for start in range(position, self.shard.bytes, _CHUNK_BYTES):
            chunk = self._read(start, min(_CHUNK_BYTES, self.shard.bytes - start))
            hashed.update(chunk)
            if rows_known and chunk.strip(b"\0"):
                self._tell("there are bytes behind its last member")
                return
        if not self.shard.name.endswith(f"-{hashed.hexdigest()}") and not (rows_known and self.damages):
            self._tell("its bytes are not those whose hash is in its name")

    def _look_at(self, i: int, row: np.void) -> bytes:
        """Check a row. Returns all its bytes in the tar, headers and padding included."""
        begin = _begin(row)
        data = self._read(begin, _end(row) - begin)
        self.rows_read += 1
        record = _content(data, row, "json", begin)
        utterance = None
        if zlib.crc32(record) != row["json_crc32"]:
            self._tell("the record fails its checksum", i)
        else:
            try:
                utterance = self._parse(i, row, record)
            except ValueError as error:
                self._tell(str(error), i)
        self._check_teacher(i, row, _content(data, row, "teacher", begin))
        audio = self._audio(i, row, data, begin)
        if audio is not None:
            self._check_audio(i, row, audio)
        if utterance is not None:
            for what in _frame_faults(data, row, begin, sample_key(utterance.id)):
                self._tell(what, i)
            if self.inspect is not None and (objection := self.inspect(utterance)):
                self._tell(objection, i)
        return data

    def _audio(self, i: int, row: np.void, data: bytes, begin: int) -> bytes | None:
        """The row's audio from where it lies, None when it is damaged."""
        if row["audio_file"] == OWN_TAR:
            audio, where = _content(data, row, "audio", begin), "the audio"
        else:
            file = self._outside(int(row["audio_file"]))
            try:
                (audio,) = file.store.read_ranges([(file.name, int(row["audio_offset"]), int(row["audio_size"]))])
            except FileNotFoundError:
                return None  # told once, of the file
            where = f"the audio (in {file})"
        if zlib.crc32(audio) == row["audio_crc32"]:
            return audio
        self._tell(f"{where} fails its checksum", i)
        return None

    def _outside(self, number: int) -> StoredFile:
        return audio_file(self.store, self.description.audio_files[number].path, self._opened)

    def _check_audio(self, i: int, row: np.void, audio: bytes) -> None:
        try:
            length = len(decode_flac(audio) if row["audio_file"] == OWN_TAR else decode_audio(audio))
        except AudioError as error:
            self._tell(f"the audio cannot be decoded ({error})", i)
        else:
            if length != row["num_samples"]:
                self._tell(f"the audio has {length} samples, the index says {row['num_samples']}", i)

    def _check_teacher(self, i: int, row: np.void, data: bytes) -> None:
        spec = self.description.teacher
        if (spec is None) != (not row["teacher_size"]):
            self._tell("dataset.json and the index do not agree on whether there is a teacher's file", i)
        elif zlib.crc32(data) != row["teacher_crc32"]:
            self._tell("the teacher's file fails its checksum", i)
        elif spec is not None:
            try:
                decode_array(data, spec.row, None)
            except ValueError as error:
                self._tell(f"the teacher's file cannot be read ({error})", i)

    def _parse(self, i: int, row: np.void, data: bytes) -> Utterance:
        """Raises ValueError when an intact record does not parse or is not what its row and dataset.json say."""
        utterance, continuation = parse_record(data)
        prompt = None if continuation is None else continuation.prompt
        emotion = -1 if utterance.emotion is None else EMOTIONS.index(utterance.emotion)
        both = {
            "id": (name_hash(utterance.id), row["id_hash"]), "corpus": (name_hash(utterance.corpus), row["corpus"]),
            "speaker": (name_hash(utterance.speaker), row["speaker"]), "emotion": (emotion, row["emotion"]),
            "the clips of messages": (utterance.earlier_samples, earlier_samples(self._earlier, i)),
        }  # fmt: skip
        if differing := [name for name, (here, there) in both.items() if here != there]:
            raise ValueError(f"record and index do not agree on {' and '.join(differing)}")
        asked = self.description.prompt
        if prompt != asked and (asked is None or prompt != in_language(asked, utterance.language)):
            raise ValueError(f"written under the prompt {prompt!r}, dataset.json says {asked!r}")
        if utterance.corpus not in self.description.corpora:
            raise ValueError(f"the corpus {utterance.corpus!r} is not in dataset.json")
        return utterance


def _offset(row: np.void, part: str) -> int:
    return int(teacher_offset(row) if part == "teacher" else row[f"{part}_offset"])


def _content(data: bytes, row: np.void, part: str, begin: int) -> bytes:
    offset = _offset(row, part) - begin
    return data[offset : offset + int(row[f"{part}_size"])]


def _frame_faults(data: bytes, row: np.void, begin: int, key: str) -> Iterator[str]:
    """What is wrong with the headers and the padding around a row's members."""
    members = [("json", "json", "record")]
    if row["audio_file"] == OWN_TAR:
        members.insert(0, ("audio", "flac", "audio"))
    if row["teacher_size"]:
        members.append(("teacher", "teacher.npy", "teacher's file"))
    for part, suffix, what in members:
        offset, size = _offset(row, part) - begin, int(row[f"{part}_size"])
        if data[offset - BLOCK : offset] != member_header(f"{key}.{suffix}", size):
            yield f"the tar's header of the {what} is damaged"
        if data[offset + size : offset + padded(size)].strip(b"\0"):
            yield f"there are bytes behind the {what}"


def _begin(row: np.void) -> int:
    """Where the first header of a row lies in its tar."""
    return int(row["audio_offset"] if row["audio_file"] == OWN_TAR else row["json_offset"]) - BLOCK


def _record_begin(row: np.void) -> int:
    """Where the record must lie, behind the audio if that is in the same tar."""
    own = row["audio_file"] == OWN_TAR
    return int(row["audio_offset"]) + padded(int(row["audio_size"])) + BLOCK if own else int(row["json_offset"])


def _end(row: np.void) -> int:
    """Where the next row begins."""
    return padded(int(record_end(row)))
