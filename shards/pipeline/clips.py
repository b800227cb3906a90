"""The clips of a job without holding them: 32 bytes each, which say where its line stands in which manifest.

The first pass over the manifests checks every line; a worker that needs a clip reads its line again. So neither the
driver's memory nor what it sends grows with the length of transcripts and paths.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.decoder import Span
from shards.manifest import (
    LineErrors,
    Reject,
    empty_manifest,
    none_of_split,
    parse_utterance,
    portable_path,
    read_lines,
)
from shards.sample import Utterance
from shards.sets.index import AudioAt, name_hash

CLIP_LINE = np.dtype(
    [
        ("id_hash", "<u8"),  # name_hash of the utterance's id: the order of clips in shards
        ("offset", "<u8"), ("size", "<u4"), ("crc32", "<u4"),  # of the line
        ("manifest", "<u4"),  # position in `manifests`
        ("duration_s", "<f4"),  # of all its turns; NaN when the manifest does not say
    ]
)  # fmt: skip
_ROW = struct.Struct("<QQIIIf")
assert _ROW.size == CLIP_LINE.itemsize


@dataclass(frozen=True)
class KeptAudio:
    """Audio that stays where it is, in another set's tar; `num_samples` at 16 kHz."""

    at: AudioAt
    num_samples: int


@dataclass(frozen=True)
class Clip:
    """An utterance as the shard will hold it, and where its audio is now: an absolute path for each turn that is heard,
    or audio that stays there."""

    utterance: Utterance
    audio: tuple[str, ...] | KeptAudio

    @property
    def spans(self) -> list[Span]:
        """What is to be decoded, if anything, turn by turn."""
        if isinstance(self.audio, KeptAudio):
            return []
        return [
            Span(path, start_s, duration_s)
            for path, (_, start_s, duration_s) in zip(self.audio, self.utterance.spans, strict=True)
        ]


@dataclass(frozen=True)
class ClipLines:
    """The clips of some manifests: CLIP_LINE rows in the order of `id_hash` (equal ones by id), the same whatever the
    order of lines and files; later lines with an id that was there before are in `duplicates`.

    `fingerprint` names the content of the manifests, `licences` counts the clips of each (corpus, licence).
    """

    manifests: tuple[Path, ...]
    rows: NDArray[np.void]
    duplicates: NDArray[np.void]
    fingerprint: str
    licences: dict[tuple[str, str | None], int]

    def rejects(self) -> Iterator[Reject]:
        """One per duplicate."""
        for row in self.duplicates:
            manifest = self.manifests[row["manifest"]]
            name = _read_line(manifest, row).id
            yield Reject(f"{manifest}: {name}", "duplicate_id", f"id {name!r} is in an earlier manifest too")


def scan_manifests(manifests: Sequence[Path], splits: Sequence[str]) -> ClipLines:
    """Every line is checked; those of the `splits` make the clips.

    Raises ValueError with one line `file:line: what is wrong` per bad line (the first ten), for an id that occurs twice
    in one manifest, and for a manifest without utterances in the splits; OSError when one cannot be read.
    """
    packed, errors = bytearray(), LineErrors()
    content = hashlib.blake2b(digest_size=8)
    licences: Counter[tuple[str, str | None]] = Counter()
    for position, manifest in enumerate(manifests):
        others: Counter[str] = Counter()
        empty = True
        for line in read_lines(manifest, errors):
            utterance = line.utterance
            if not utterance.in_split(splits):
                others[utterance.split] += 1
                continue
            empty = False
            duration_s = sum(float("nan") if duration is None else duration for *_, duration in utterance.spans)
            crc = zlib.crc32(line.data)
            packed += _ROW.pack(name_hash(utterance.id), line.offset, len(line.data), crc, position, duration_s)
            licences[utterance.corpus, utterance.licence] += 1
            content.update(line.data.strip() + b"\n")
        if empty and not errors:
            raise none_of_split(manifest, splits, others) if others else empty_manifest(manifest)
    rows: NDArray[np.void] = np.frombuffer(packed, CLIP_LINE)
    rows = rows[np.argsort(rows["id_hash"], kind="stable")]  # equal hashes stay in the order of reading
    del packed
    is_duplicate = _resolve_equal_hashes(rows, manifests, licences, errors)
    errors.raise_if_any()
    return ClipLines(tuple(manifests), rows[~is_duplicate], rows[is_duplicate], content.hexdigest(), dict(licences))


def read_clips(manifests: Sequence[Path], rows: NDArray[np.void]) -> list[Clip]:
    """The clips of CLIP_LINE rows, in their order. Raises ValueError when a manifest is no longer what it was."""
    clips = []
    for row in rows:
        manifest = manifests[row["manifest"]].absolute()
        utterance = _absolute(_read_line(manifest, row), manifest.parent)
        clips.append(Clip(_portable(utterance, manifest.parent), tuple(path for path, *_ in utterance.spans)))
    return clips


def _absolute(utterance: Utterance, folder: Path) -> Utterance:
    return utterance.with_paths(lambda audio: str(folder / audio))


def _portable(utterance: Utterance, folder: Path) -> Utterance:
    return utterance.with_paths(lambda audio: portable_path(audio, folder))


def _read_line(manifest: Path, row: np.void) -> Utterance:
    with manifest.open("rb") as file:
        file.seek(int(row["offset"]))
        data = file.read(int(row["size"]))
    if zlib.crc32(data) != row["crc32"]:
        raise ValueError(f"{manifest}: has changed since it was checked; run the same command again")
    return parse_utterance(data)


def _resolve_equal_hashes(
    rows: NDArray[np.void],
    manifests: Sequence[Path],
    licences: Counter[tuple[str, str | None]],
    errors: LineErrors,
) -> NDArray[np.bool_]:
    """Which rows repeat an id. Rows of different ids with one hash are put in the order of their ids."""
    is_duplicate = np.zeros(len(rows), bool)
    repeats: list[tuple[int, int]] = []  # within one manifest: the row, and the row that has its id first
    equal = rows["id_hash"][1:] == rows["id_hash"][:-1]
    starts = np.flatnonzero(equal & ~np.concatenate([[False], equal[:-1]])) if len(rows) > 1 else np.empty(0, int)
    for start in starts:
        stop = int(np.searchsorted(rows["id_hash"], rows["id_hash"][start], side="right"))
        group = [(_read_line(manifests[row["manifest"]], row), row.copy()) for row in rows[start:stop]]
        group.sort(key=lambda member: member[0].id)  # stable: the first line of an id stays first
        for i, (utterance, row) in enumerate(group):
            rows[start + i] = row
            if i == 0 or group[i - 1][0].id != utterance.id:
                first = start + i
                continue
            is_duplicate[start + i] = True
            licences[utterance.corpus, utterance.licence] -= 1
            if row["manifest"] == rows["manifest"][first]:
                repeats.append((int(start) + i, int(first)))
    _tell_repeats(rows, repeats, manifests, errors)
    return is_duplicate


def _tell_repeats(
    rows: NDArray[np.void], repeats: list[tuple[int, int]], manifests: Sequence[Path], errors: LineErrors
) -> None:
    """All are counted, and the first in the order of files and lines are told."""
    told = sorted(repeats, key=lambda pair: (rows["manifest"][pair[0]], rows["offset"][pair[0]]))[: errors.room]
    errors.add_untold(len(repeats) - len(told))
    for number, manifest in enumerate(manifests):
        pairs = [(rows[row], rows[first]) for row, first in told if rows["manifest"][row] == number]
        lines = _line_numbers(manifest, {int(row["offset"]) for pair in pairs for row in pair})
        for row, first in pairs:
            taken = f"id {_read_line(manifest, row).id!r} was already used in line {lines[int(first['offset'])]}"
            errors.add(manifest, lines[int(row["offset"])], taken)


def _line_numbers(manifest: Path, offsets: Collection[int]) -> dict[int, int]:
    """The number, from 1, of the line that begins at each offset; the file is read once."""
    numbers, number, position = {}, 1, 0
    with manifest.open("rb") as file:
        for offset in sorted(offsets):
            while position < offset and (block := file.read(min(offset - position, 2**20))):
                number, position = number + block.count(b"\n"), position + len(block)
            numbers[offset] = number
    return numbers
