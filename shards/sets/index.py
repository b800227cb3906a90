"""What a shard set says of itself: dataset.json and one index per tar, both checked before anything is believed.

    dataset.json                    identity, counts, provenance, the shards in order; written last
    shards/000003-1f2e3d4c5b6a.tar  plain WebDataset: key.flac, key.json
    index/000003-1f2e3d4c5b6a.npy   one INDEX_ROW per sample of that tar; behind them, where there are conversations, a
                                    second array: one EARLIER_CLIP per clip that is not the last of its sample
    tokens/<template>/000003-1f2e3d4c5b6a.npy   token counts for one tokenizer and its chat template

Readers open what dataset.json names and nothing else: leftovers of killed runs do not exist for them.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from shards.sample import EMOTIONS, MAX_MESSAGES, is_unicode
from shards.sets.store import Store
from shards.sets.teacher import TeacherSpec

FORMAT = 2
OWN_TAR = -1  # as `audio_file`: the audio lies in the tar that the row is the index of
MAX_RECORD_BYTES = 256 * 2**10
MAX_AUDIO_BYTES = 64 * 2**20
MAX_TEACHER_BYTES = 64 * 2**20
INDEX_ROW = np.dtype(
    [
        ("id_hash", "<u8"),  # name_hash of the utterance's id; keys every random draw
        ("corpus", "<u8"), ("speaker", "<u8"),  # name_hash of each; 0 for no speaker
        ("audio_file", "<i4"),  # OWN_TAR, or a position in `audio_files` of dataset.json
        ("audio_offset", "<u8"), ("audio_size", "<u4"), ("audio_crc32", "<u4"),
        ("num_samples", "<u4"),  # of all clips of a conversation, which lie end to end
        ("json_offset", "<u8"), ("json_size", "<u4"), ("json_crc32", "<u4"),
        ("teacher_size", "<u4"), ("teacher_crc32", "<u4"),  # the file behind the record's, if there is one: else 0
        ("emotion", "i1"),  # position in EMOTIONS, -1 for none
    ]
)  # fmt: skip
EARLIER_CLIP = np.dtype([("row", "<u4"), ("num_samples", "<u4")])  # in the order of rows and of turns

_DATASET = "dataset.json"
_MAX_DATASET_BYTES = 256 * 2**20
_MAX_OBJECT_BYTES = 64 * 2**20
_REMEDY = "copy the shard set again, or make it again"
_NPY_HEADER_BYTES = 4096
_MAX_ROW_BYTES = INDEX_ROW.itemsize + MAX_MESSAGES // 2 * EARLIER_CLIP.itemsize
_MAX_TOP_K = 4096
_BLOCK = 512  # of a tar: before each file there is one
_MAX_NUMBER = 2**62  # so that sums of sizes and offsets fit into 64 bits
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}")


def name_hash(name: str | None) -> int:
    """64 bits that spread ids evenly: the order of samples in shards and every random draw depend on it. 0 for None."""
    if name is None:
        return 0
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Shard:
    """One tar of a set. `bytes` is its size, `index_crc32` that of its index file."""

    name: str
    rows: int
    bytes: int
    num_samples: int
    index_crc32: int

    @property
    def tar(self) -> str:
        """Its file, below the set's root."""
        return f"shards/{self.name}.tar"

    @property
    def index(self) -> str:
        """The file of its index, below the set's root."""
        return f"index/{self.name}.npy"


@dataclass(frozen=True)
class AudioFile:
    """A tar outside of the set in which audio lies: a path relative to the set's root, an absolute one, or a URL."""

    path: str
    bytes: int


@dataclass(frozen=True)
class AudioAt:
    """Audio that stays in another file: `file` is its position in `audio_files` of dataset.json."""

    file: int
    offset: int
    size: int
    crc32: int


@dataclass(frozen=True)
class Description:
    """What of dataset.json reading depends on. `prompt` is None for a set without continuations, `teacher` for one
    without the LLM's distributions; `writers` name all that the continuations depend on, `languages` are those of the
    prompts."""

    dataset_id: str
    prompt: str | None
    corpora: tuple[str, ...]
    shards: tuple[Shard, ...]
    audio_files: tuple[AudioFile, ...]
    teacher: TeacherSpec | None = None
    writers: tuple[str, ...] = ()
    clips: tuple[tuple[str, str | None, int], ...] = ()  # corpus, licence, and how many under both
    languages: tuple[str, ...] = ("en",)


@dataclass(frozen=True)
class Index:
    """Of one shard: INDEX_ROW [rows], and the EARLIER_CLIP of conversations."""

    rows: NDArray[np.void]
    earlier: NDArray[np.void]

    @property
    def num_samples(self) -> int:
        """Of all clips together."""
        return int(self.rows["num_samples"].sum())

    def encode(self) -> bytes:
        """The index file."""
        return encode_array(self.rows) + (encode_array(self.earlier) if len(self.earlier) else b"")


def dataset_id(shards: list[Shard]) -> str:
    """16 hex digits that name the content: every tar's bytes (their hash is in its name) and every index."""
    content = json.dumps([[shard.name, shard.rows, shard.index_crc32] for shard in shards])
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def read_description(store: Store) -> Description:
    """Raises ValueError, with the remedy, for a root that is unfinished, damaged or no shard set."""
    return read_dataset(store)[1]


def read_object(store: Store, name: str, remedy: str, max_bytes: int = _MAX_OBJECT_BYTES) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError, with `remedy`, for another or none; FileNotFoundError."""
    try:
        if store.size(name) > max_bytes:
            raise ValueError("too large for what it says")
        record = json.loads(store.read(name).decode())
        if not isinstance(record, dict):
            raise ValueError("not a JSON object")
    except (ValueError, RecursionError) as error:
        raise damaged(store, name, error, remedy) from None
    return record


def damaged(store: Store, name: str, error: Exception, remedy: str) -> ValueError:
    """What is said of a file in which `error` was found."""
    what = f"no {error}" if isinstance(error, KeyError) else str(error)
    return ValueError(f"{store.url}/{name}: damaged ({what}); {remedy}")


def read_dataset(store: Store) -> tuple[dict[str, Any], Description]:
    """Everything that dataset.json says, and what of it reading depends on, checked. Raises as `read_description`."""
    try:
        record = read_object(store, _DATASET, _REMEDY, _MAX_DATASET_BYTES)
    except FileNotFoundError:
        if "job.json" in store.names(""):
            raise ValueError(f"{store.url}: unfinished; run the same `blsp shard` again, it goes on") from None
        raise ValueError(f"{store.url}: not a shard set; make one with `blsp shard RECIPE`") from None
    if record.get("format") != FORMAT:
        raise ValueError(
            f"{store.url}: format {str(record.get('format'))[:20]}, this version reads {FORMAT}; make the shard set "
            "again"
        )
    try:
        return record, _parse(record)
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(store, _DATASET, error, _REMEDY) from None


def parse_shard(record: Any) -> Shard:
    """What `dataclasses.asdict` made of a shard. Raises KeyError, TypeError or ValueError for anything else."""
    shard = Shard(*(_typed(record, key, str if key == "name" else int) for key in Shard.__dataclass_fields__))
    if not _NAME.fullmatch(shard.name):
        raise ValueError(f"{shard.name[:80]!r} is no name of a shard")
    return shard


def _names(record: dict[str, Any], key: str, default: list[str]) -> tuple[str, ...]:
    names = record.get(key, default)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{key} is no list of names")
    return tuple(names)


def _parse(record: dict[str, Any]) -> Description:
    shards = tuple(parse_shard(shard) for shard in record["shards"])
    files = tuple(AudioFile(_typed(file, "path", str), _typed(file, "bytes", int)) for file in record["audio_files"])
    corpora = tuple(dict.fromkeys(_typed(corpus, "corpus", str) for corpus in record["corpora"]))
    prompt = None if record["prompt"] is None else _typed(record, "prompt", str)
    teacher = _teacher(record.get("teacher"))
    writers, languages = _names(record, "writers", []), _names(record, "languages", ["en"])
    dataset = _typed(record, "dataset_id", str)
    clips = tuple(
        (row["corpus"], _licence(row), _typed({"clips": 0, **row}, "clips", int)) for row in record["corpora"]
    )
    return Description(dataset, prompt, corpora, shards, files, teacher, writers, clips, languages)


def _licence(record: dict[str, Any]) -> str | None:
    return None if record.get("licence") is None else _typed(record, "licence", str)


def _teacher(record: Any) -> TeacherSpec | None:
    if record is None:
        return None
    top_k, temperatures = _typed(record, "top_k", int), record["temperatures"]
    if not 0 < top_k <= _MAX_TOP_K or type(temperatures) is not list or len(temperatures) > _MAX_TOP_K:
        raise ValueError("the teacher's top_k or temperatures are out of range")
    if not all(type(t) in (int, float) and 0 < t < _MAX_NUMBER for t in temperatures):
        raise ValueError("the teacher's temperatures are no such numbers")
    return TeacherSpec(top_k, tuple(map(float, temperatures)))


def _typed(record: Any, key: str, kind: type) -> Any:
    value = record[key]
    if type(value) is not kind or (isinstance(value, int) and not 0 <= value < _MAX_NUMBER):
        raise ValueError(f"{key} is {str(value)[:80]!r}")
    if isinstance(value, str) and ("\0" in value or not is_unicode(value)):
        raise ValueError(f"{key} is {value[:80]!r}")
    return value


def encode_array(array: NDArray[np.void]) -> bytes:
    """The array as an .npy file."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()


def decode_array(data: bytes, dtype: DTypeLike, num_rows: int | None) -> NDArray[np.void]:
    """The array of an .npy file (`num_rows=None`: of any length). Raises ValueError when it is not one of that type and
    length; nothing is unpickled, and no memory is taken for what a header only claims."""
    # Compared, not parsed: numpy parses it as Python, which in several threads at once can fail (Python 3.11).
    row = np.dtype(dtype)
    fields = f"{{'descr': {np.lib.format.dtype_to_descr(row)!r}, 'fortran_order': False, 'shape': ("
    start = 10 + int.from_bytes(data[8:10], "little")
    header = re.fullmatch(re.escape(fields.encode()) + rb"(\d{1,15}),\), \} *\n?", data[10:start])
    if data[:8] != b"\x93NUMPY\x01\x00" or header is None:
        raise ValueError(f"not an .npy file of {row.itemsize}-byte rows as they are here")
    number, content = int(header[1]), data[start:]
    if num_rows is not None and number != num_rows:
        raise ValueError(f"{number} rows, expected {num_rows} rows")
    if len(content) != number * row.itemsize:
        raise ValueError(f"{len(content)} bytes for {number} rows of {row.itemsize}")
    return np.frombuffer(bytearray(content), row)


def read_index(store: Store, description: Description, shard: Shard) -> Index:
    """The index of `shard.rows` samples, checked against dataset.json, the tar's size and what a row may say.

    Raises ValueError for a missing or damaged file.
    """
    try:
        size = store.size(shard.tar)
    except FileNotFoundError:
        raise missing(store, shard.tar) from None
    if size != shard.bytes:
        raise ValueError(f"{store.url}/{shard.tar}: {size} bytes, written were {shard.bytes}; copy the shard set again")
    return read_rows(store, description.audio_files, shard)


def read_rows(store: Store, audio_files: tuple[AudioFile, ...], shard: Shard) -> Index:
    """As `read_index`, without a look at the tar."""
    try:
        if store.size(shard.index) > shard.rows * _MAX_ROW_BYTES + 2 * _NPY_HEADER_BYTES:
            raise ValueError(f"too large for {shard.rows} rows")
        data = store.read(shard.index)
        if zlib.crc32(data) != shard.index_crc32:
            raise ValueError("it fails its checksum")
        index = decode_index(data, shard.rows)
        _check_rows(index.rows, shard, audio_files)
        _check_earlier(index)
    except FileNotFoundError:
        raise missing(store, shard.index) from None
    except ValueError as error:
        raise damaged(store, shard.index, error, _REMEDY) from None
    return index


def earlier_samples(earlier: NDArray[np.void], row: int) -> tuple[int, ...]:
    """The lengths of the clips before a row's last, of EARLIER_CLIP in the order of rows."""
    begin, end = np.searchsorted(earlier["row"], [row, row + 1])
    return tuple(earlier["num_samples"][begin:end].tolist())


def decode_index(data: bytes, num_rows: int) -> Index:
    """What `Index.encode` made. Raises ValueError when it is not that; what its rows say is not looked at."""
    end = 10 + int.from_bytes(data[8:10], "little") + num_rows * INDEX_ROW.itemsize
    earlier = decode_array(data[end:], EARLIER_CLIP, None) if len(data) > end else np.empty(0, EARLIER_CLIP)
    return Index(decode_array(data[:end], INDEX_ROW, num_rows), earlier)


def missing(store: Store, name: str) -> ValueError:
    """What is said of a file that dataset.json names and that is not there."""
    return ValueError(f"{store.url}/{name}: is missing; {_REMEDY}")


def teacher_offset(rows: NDArray[np.void] | np.void) -> NDArray[np.uint64]:
    """Where the teacher's file begins, of rows that have one: behind the record and its own header."""
    blocks = (rows["json_size"].astype(np.uint64) + np.uint64(2 * _BLOCK - 1)) // np.uint64(_BLOCK)
    offset: NDArray[np.uint64] = rows["json_offset"] + blocks * np.uint64(_BLOCK)
    return offset


def record_end(rows: NDArray[np.void] | np.void) -> NDArray[np.uint64]:
    """Where the last file of each row ends."""
    with_teacher, without = teacher_offset(rows) + rows["teacher_size"], rows["json_offset"] + rows["json_size"]
    end: NDArray[np.uint64] = np.where(rows["teacher_size"] > 0, with_teacher, without)
    return end


def _check_rows(rows: NDArray[np.void], shard: Shard, audio_files: tuple[AudioFile, ...]) -> None:
    sizes = np.array([*(file.bytes for file in audio_files), shard.bytes], np.uint64)  # OWN_TAR is the last
    inside = (rows["audio_file"] >= OWN_TAR) & (rows["audio_file"] < len(audio_files))
    inside &= rows["audio_offset"] < np.uint64(_MAX_NUMBER)
    inside &= rows["json_offset"] < np.uint64(_MAX_NUMBER)
    file_sizes = sizes[np.where(inside, rows["audio_file"], OWN_TAR)]
    inside &= rows["audio_offset"] + rows["audio_size"] <= file_sizes
    inside &= record_end(rows) <= np.uint64(shard.bytes)
    inside &= rows["json_offset"] >= _BLOCK
    own, audio_end = rows["audio_file"] == OWN_TAR, rows["audio_offset"] + rows["audio_size"]
    side_by_side = (rows["json_offset"] >= audio_end) & (rows["json_offset"] < audio_end + np.uint64(2 * _BLOCK))
    inside &= ~own | ((rows["audio_offset"] >= _BLOCK) & side_by_side)  # they are read as one
    inside &= (rows["audio_size"] <= MAX_AUDIO_BYTES) & (rows["json_size"] <= MAX_RECORD_BYTES)
    inside &= rows["teacher_size"] <= MAX_TEACHER_BYTES
    inside &= (rows["emotion"] >= -1) & (rows["emotion"] < len(EMOTIONS)) & (rows["num_samples"] > 0)
    if not inside.all():
        raise ValueError(f"row {int(np.argmin(inside))} points outside of its file")


def _check_earlier(index: Index) -> None:
    rows, lengths = index.earlier["row"].astype(np.int64), index.earlier["num_samples"].astype(np.int64)
    if len(rows) and ((np.diff(rows) < 0).any() or rows[-1] >= len(index.rows)):
        raise ValueError("its clips of conversations are not in the order of its rows")
    sums, numbers = np.zeros((2, len(index.rows)), np.int64)
    np.add.at(sums, rows, lengths)
    np.add.at(numbers, rows, 1)
    fit = (sums < index.rows["num_samples"]) & (numbers <= MAX_MESSAGES // 2)
    if not fit.all() or not lengths.all():
        raise ValueError(f"row {int(np.argmin(fit))}: its earlier clips cannot be so many or so long")
