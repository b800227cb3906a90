"""A shard set over tars that somebody else wrote: their audio stays where it is, our tars hold the records.

Every audio is decoded once, so that what the set promises of a clip (that it can be used, how long it is) is known, and
in a process of its own, since nobody knows what others put there.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import json
import os
import tempfile
import threading
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TextIO

from shards.audio import AudioError
from shards.decoder import Decoder, Span
from shards.manifest import Reject
from shards.sample import Utterance
from shards.sets.foreign import ForeignSample, UnusableError, samples, translate
from shards.sets.index import FORMAT, AudioAt, AudioFile, Shard, name_hash, parse_shard, read_rows
from shards.sets.new_set import NewSet
from shards.sets.shard_set import StoredFile, audio_file
from shards.sets.store import Store, is_url, open_store
from shards.sets.tar import TarShard
from shards.sets.tar_scan import TarWindow

_CLIPS_PER_SHARD = 1000
_MAX_THREADS = 16
_MAX_WAITING = 64  # samples that are being decoded
_MAX_WAITING_BYTES = 64 * 2**20
_PACKAGES = ("numpy", "soundfile", "soxr")


@dataclass(frozen=True)
class Indexed:
    """inputs = written + sum(rejected) + duplicates. `unknown_emotions` of those written have a label that is none of
    ours, and count as unlabelled."""

    dataset_id: str
    inputs: int
    written: int
    rejected: dict[str, int]
    duplicates: int
    unknown_emotions: int
    hours: float


def index_tars(
    tars: Sequence[str | Path],
    out: str | Path,
    corpus: str,
    licence: str | None = None,
    on_progress: Callable[[int, int, int], None] = lambda done_bytes, total_bytes, samples: None,
) -> Indexed:
    """Make the set `out` over `tars` (paths or URLs), or finish it; a finished one is left as it is.

    Takes some 200 MB of memory and about 64 bytes for each id. Raises ValueError for a tar that is missing, packed,
    damaged or cut off, if no sample can be used, or for an `out` that holds something else.
    """
    paths = [_seen_from(out, tar) for tar in tars]
    if again := [path for path, times in Counter(paths).items() if times > 1]:
        raise ValueError(f"{again[0]}: named twice")
    job = {"format": FORMAT, "tars": paths, "corpus": corpus, "licence": licence}
    opened: dict[str, Store] = {}
    sizes = [_size(audio_file(open_store(out), _absolute(tar), opened)) for tar in tars]  # before anything is written
    outside = [AudioFile(path, size) for path, size in zip(paths, sizes, strict=True)]
    with NewSet.begin(out, job) as new, _Decoders() as decoders:
        files = [audio_file(new.store, path, opened) for path in paths]
        total = sum(file.bytes for file in outside)
        parts: list[dict[str, Any]] = []
        seen: set[int] = set()
        going_on = True
        for number, file in enumerate(files):
            part = new.committed(number, _check_part) if going_on else None
            before, clips = sum(file.bytes for file in outside[:number]), sum(part["inputs"] for part in parts)
            if part is None or not _recall(new, part, outside, number, seen):
                going_on = False  # what comes later depends on what was a duplicate here
                tar = _Tar(new, decoders, file, number, outside[number].bytes, seen)

                def show(done: int, inputs: int, before: int = before, clips: int = clips) -> None:
                    on_progress(before + done, total, clips + inputs)

                part = tar.index(sum(len(part["shards"]) for part in parts), corpus, licence, show)
                new.commit(number, part)
            parts.append(part)
            on_progress(before + outside[number].bytes, total, clips + part["inputs"])
        return _finish(new, job, outside, parts)


def _seen_from(out: str | Path, tar: str | Path) -> str:
    """The tar's path as dataset.json of `out` names it: relative where it lies beside `out` or deeper, so that both can
    be moved together, else absolute."""
    absolute = _absolute(tar)
    if is_url(tar):
        return absolute
    beside = not is_url(out) and Path(absolute).is_relative_to(Path(out).absolute().parent)
    return os.path.relpath(absolute, Path(out).absolute()) if beside else absolute


def _absolute(tar: str | Path) -> str:
    return str(tar) if is_url(tar) else os.path.normpath(Path(tar).absolute())


def _size(file: StoredFile) -> int:
    try:
        return file.store.size(file.name)
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file") from None


def _check_part(part: dict[str, Any]) -> None:
    """Raises KeyError, TypeError or ValueError for what `_Tar.index` cannot have returned."""
    rejected = dict(part["rejected"])
    numbers = (part["bytes"], part["inputs"], part["unknown_emotions"], *rejected.values())
    if not isinstance(part["rejected"], dict) or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("a number in it is none")
    written = sum(parse_shard(shard).rows for shard in part["shards"])
    if part["inputs"] != written + sum(rejected.values()):
        raise ValueError("its numbers do not add up")


def _recall(new: NewSet, part: dict[str, Any], outside: Sequence[AudioFile], number: int, seen: set[int]) -> bool:
    """Note the ids that an earlier call wrote of a tar; False when they have to be written again."""
    if part["bytes"] != outside[number].bytes:
        if new.finished:
            raise ValueError(f"{outside[number].path}: changed since {new.store.url} was made; choose another folder")
        return False
    ids: set[int] = set()
    try:
        for shard in part["shards"]:
            ids.update(read_rows(new.store, tuple(outside), Shard(**shard)).rows["id_hash"].tolist())
    except ValueError:
        return False
    seen |= ids
    return True


def _finish(new: NewSet, job: dict[str, Any], outside: list[AudioFile], parts: list[dict[str, Any]]) -> Indexed:
    rejected: Counter[str] = Counter()
    for part in parts:
        rejected.update(part["rejected"])
    duplicates = rejected.pop("duplicate_id", 0)
    shards = [Shard(**shard) for part in parts for shard in part["shards"]]
    inputs, written = sum(part["inputs"] for part in parts), sum(shard.rows for shard in shards)
    assert inputs == written + rejected.total() + duplicates
    if not written:
        reasons = ", ".join(f"{number} {reason}" for reason, number in rejected.most_common()) or "there are none"
        raise ValueError(f"none of the {inputs} samples could be used ({reasons}); see {new.store.url}/rejects")
    about = {
        "inputs": inputs,
        "rejected": dict(rejected.most_common()),
        "duplicates": duplicates,
        "unknown_emotions": sum(part["unknown_emotions"] for part in parts),
        "prompt": None,
        "writers": [],
        "corpora": [{"corpus": job["corpus"], "licence": job["licence"], "clips": written}],
        "versions": {package: importlib.metadata.version(package) for package in _PACKAGES},
        "job": job,
    }
    record = new.finish(shards, outside, len(parts), about)
    return Indexed(**{name: record[name] for name in Indexed.__dataclass_fields__})


@dataclass(frozen=True)
class _Decoding:
    """A sample on its way: its audio is being decoded, or it is known to be of no use."""

    sample: ForeignSample
    utterance: Utterance | None
    unknown_emotion: bool
    num_samples: Future[int]


class _Decoders:
    """Lengths of audio files, each found by the decoder's process of one of some threads. The audio goes through the
    machine's own temporary folder: that of the set may lie on NFS."""

    def __init__(self) -> None:
        self._folder, self._mine = tempfile.TemporaryDirectory(prefix="blsp-"), threading.local()
        self._pool = ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1))
        self._all: list[Decoder] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        for decoder in self._all:
            decoder.close()
        self._folder.cleanup()

    def num_samples(self, data: bytes, name: str) -> Future[int]:
        """At 16 kHz, or AudioError for audio that cannot be used or ends the decoder; `name` is for messages."""
        return self._pool.submit(self._decode, data, name)

    def _decode(self, data: bytes, name: str) -> int:
        if not hasattr(self._mine, "decoder"):
            self._mine.decoder = Decoder(only_lengths=True)
            self._mine.path = Path(self._folder.name, str(threading.get_ident()))
            self._all.append(self._mine.decoder)
        self._mine.path.write_bytes(data)
        (result,) = self._mine.decoder.encode([Span(str(self._mine.path))])
        if isinstance(result, AudioError):
            raise AudioError(result.reason, str(result).replace(str(self._mine.path), name))
        num_samples: int = result.num_samples
        return num_samples


class _Tar:
    """One of the tars, read from its first byte to its last; it gets shards of its own."""

    def __init__(
        self, new: NewSet, decoders: _Decoders, file: StoredFile, number: int, size: int, seen: set[int]
    ) -> None:
        self._decoders = decoders
        self._new, self._file, self._number, self._seen = new, file, number, seen
        self._window = TarWindow(lambda offset, n: file.store.read_ranges([(file.name, offset, n)])[0], size)
        self._inputs = self._unknown_emotions = 0
        self._rejected: Counter[str] = Counter()

    def index(
        self, first_shard: int, corpus: str, licence: str | None, on_progress: Callable[[int, int], None]
    ) -> dict[str, Any]:
        """Write its shards; returns what `_finish` has to know. Raises ValueError naming a tar that cannot be read."""
        local, name = self._new.store.scratch() / f"{self._number:06d}.jsonl", f"rejects/{self._number:06d}.jsonl"
        shards: list[Shard] = []
        with local.open("w", encoding="utf-8") as rejects:
            clips = self._clips(rejects, corpus, licence, on_progress)
            while shard := self._new.write_shard(first_shard + len(shards), lambda tar: self._fill(tar, clips)):
                shards.append(shard)
        if self._rejected:
            self._new.store.put(local, name)
        else:
            local.unlink()
            self._new.store.delete(name)
        return {
            "bytes": self._window.size,
            "inputs": self._inputs,
            "rejected": dict(self._rejected),
            "unknown_emotions": self._unknown_emotions,
            "shards": [dataclasses.asdict(shard) for shard in shards],
        }

    def _fill(self, tar: TarShard, clips: Iterator[tuple[Utterance, AudioAt, int]]) -> None:
        for utterance, audio, num_samples in itertools.islice(clips, _CLIPS_PER_SHARD):
            tar.add(utterance, None, audio, num_samples)

    def _clips(
        self,
        rejects: TextIO,
        corpus: str,
        licence: str | None,
        on_progress: Callable[[int, int], None],
    ) -> Iterator[tuple[Utterance, AudioAt, int]]:
        """The clips that can be used, in order, while later ones are being decoded; the others become rejects."""
        waiting: deque[_Decoding] = deque()
        waiting_bytes = 0
        for sample in itertools.chain(self._samples(), [None]):
            if sample is not None:
                self._inputs += 1
                waiting.append(self._begin(sample, corpus, licence))
                waiting_bytes += len(sample.audio_data)
            full = sample is None or len(waiting) >= _MAX_WAITING or waiting_bytes > _MAX_WAITING_BYTES
            while waiting and full:
                first = waiting.popleft()
                waiting_bytes -= len(first.sample.audio_data)
                full = sample is None or waiting_bytes > _MAX_WAITING_BYTES
                try:
                    clip = self._end(first)
                except (UnusableError, AudioError) as fault:
                    self._rejected[fault.reason] += 1
                    reject = Reject(f"{self._file}: {first.sample.key}", fault.reason, str(fault))
                    rejects.write(json.dumps(dataclasses.asdict(reject), ensure_ascii=False) + "\n")
                else:
                    yield clip
                    on_progress(clip[1].offset, self._inputs)

    def _samples(self) -> Iterator[ForeignSample]:
        try:
            yield from samples(self._window)
        except ValueError as error:
            raise ValueError(f"{self._file}: {error}") from None

    def _begin(self, sample: ForeignSample, corpus: str, licence: str | None) -> _Decoding:
        utterance, unknown_emotion = None, False
        try:
            tar_name = self._file.name.rpartition("/")[2]
            utterance, unknown_emotion = translate(sample, corpus, licence, tar_name)
        except UnusableError as fault:
            sample.audio_data = b""
            num_samples: Future[int] = Future()
            num_samples.set_exception(fault)
        else:
            assert sample.audio is not None
            num_samples = self._decoders.num_samples(sample.audio_data, sample.audio.name)
        return _Decoding(sample, utterance, unknown_emotion, num_samples)

    def _end(self, decoding: _Decoding) -> tuple[Utterance, AudioAt, int]:
        """Raises UnusableError or AudioError when the sample cannot be used."""
        num_samples = decoding.num_samples.result()
        utterance, audio = decoding.utterance, decoding.sample.audio
        assert utterance is not None and audio is not None
        id_hash = name_hash(utterance.id)
        if id_hash in self._seen:
            raise UnusableError("duplicate_id", f"id {utterance.id!r} was there before")
        self._seen.add(id_hash)
        self._unknown_emotions += decoding.unknown_emotion
        crc32 = zlib.crc32(decoding.sample.audio_data)
        return utterance, AudioAt(self._number, audio.offset, audio.size, crc32), num_samples
