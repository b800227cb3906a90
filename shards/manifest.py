"""The manifest: one utterance per line of JSON, and beside it what had to be rejected and why.

In memory audio paths are absolute; on disk they are relative to the manifest's folder where they lie below it, so that
a corpus and its manifest can be moved together.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.files import write_atomically
from shards.sample import Utterance

_MAX_ERRORS_SHOWN = 10
_MAX_LINE_BYTES = 2**17


@dataclass(frozen=True)
class Reject:
    """An input that was left out. `source` says where it stood (`file:line`, path or id).

    `reason` is a code: of labels bad_json, bad_line, no_text, not_speech, weak_label, unknown_emotion, duplicate_id,
    text_in_other_split; of audio missing_audio, lfs_pointer, unreadable, empty_audio, span_past_end, too_short,
    too_long, nan, silent, decoder_crash, decoder_hang; of the LLM llm_empty, llm_refusal, llm_wrong_language,
    llm_repeats, llm_names_emotion, llm_low_gain; of samples in tars of others refused_member, ambiguous, too_large.
    `detail` is a sentence.
    """

    source: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Line:
    """A line of a manifest: its number from 1, where it begins, its bytes, and what it says."""

    number: int
    offset: int
    data: bytes
    utterance: Utterance


class LineErrors:
    """Bad lines: all are counted, the first ten are told."""

    def __init__(self) -> None:
        self._told: list[str] = []
        self._number = 0

    def __bool__(self) -> bool:
        return self._number > 0

    def add(self, manifest: Path, number: int, error: object) -> None:
        """Line `number` of `manifest` is bad."""
        self._number += 1
        if len(self._told) < _MAX_ERRORS_SHOWN:
            self._told.append(f"{manifest}:{number}: {error}")

    @property
    def room(self) -> int:
        """How many more will be told."""
        return _MAX_ERRORS_SHOWN - len(self._told)

    def add_untold(self, number: int) -> None:
        """So many lines more are bad."""
        self._number += number

    def raise_if_any(self) -> None:
        """Raises ValueError with one line `file:line: what is wrong` per bad line."""
        if self:
            more = self._number - len(self._told)
            raise ValueError("\n".join(self._told + ([f"... and {more} more bad lines"] if more else [])))


def read_lines(manifest: Path, errors: LineErrors) -> Iterator[Line]:
    """The lines that say something; bad ones go to `errors`. Raises OSError when the file cannot be read."""
    offset, number = 0, 0
    with manifest.open("rb") as file:
        while data := file.readline(_MAX_LINE_BYTES + 1):
            number += 1
            begin, offset = offset, offset + len(data)
            try:
                if len(data) > _MAX_LINE_BYTES:
                    while data and not data.endswith(b"\n"):
                        data = file.readline(_MAX_LINE_BYTES)
                        offset += len(data)
                    raise ValueError(f"longer than {_MAX_LINE_BYTES} bytes")
                if data.strip():
                    yield Line(number, begin, data, parse_utterance(data))
            except ValueError as error:
                errors.add(manifest, number, error)


def read_manifest(path: Path) -> list[Utterance]:
    """The utterances in file order, audio paths made absolute.

    Raises ValueError with one line `file:line: what is wrong` per bad line (the first ten), for an id that occurs
    twice, and for a manifest without utterances; OSError when the file cannot be read.
    """
    utterances: list[Utterance] = []
    first_line: dict[str, int] = {}
    errors = LineErrors()
    for line in read_lines(path, errors):
        name = line.utterance.id
        if name in first_line:
            errors.add(path, line.number, f"id {name!r} was already used in line {first_line[name]}")
            continue
        first_line[name] = line.number
        utterances.append(line.utterance.with_paths(lambda audio: str(path.absolute().parent / audio)))
    errors.raise_if_any()
    if not utterances:
        raise empty_manifest(path)
    return utterances


def none_of_split(path: Path, splits: Sequence[str], there: Iterable[str]) -> ValueError:
    """What is said about a manifest without a clip of the `splits` that are wanted."""
    return ValueError(f"{path}: no clip of split {' or '.join(splits)}; there are {', '.join(sorted(there))}")


def empty_manifest(path: Path) -> ValueError:
    """What is said about a manifest that names no clip."""
    return ValueError(f"{path}: an empty manifest; make one with `blsp manifest READER ROOT {path}`")


def parse_utterance(line: bytes) -> Utterance:
    """What a line says, audio paths as they stand there. Raises ValueError in a few words."""
    return Utterance.from_json(parse_line(line))


def parse_line(line: bytes) -> dict[str, object]:
    """The JSON object on a line. Raises ValueError in a few words when it is none."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, got {type(record).__name__}")
    return record


def write_manifest(path: Path, utterances: Iterable[Utterance]) -> None:
    """Write the utterances sorted by id, all or nothing."""
    write_sorted_manifest(path, sorted(utterances, key=lambda utterance: utterance.id))


def write_sorted_manifest(path: Path, utterances: Iterable[Utterance]) -> None:
    """Write utterances that come sorted by id, all or nothing; no two of them are in memory at once."""
    folder = path.absolute().parent
    rows = (utterance.with_paths(lambda audio: portable_path(audio, folder)).to_json() for utterance in utterances)
    write_atomically(path, (f"{json.dumps(row, ensure_ascii=False)}\n".encode() for row in rows))


def write_rejects(path: Path, rejects: Iterable[Reject]) -> None:
    """Write one JSON object per reject, in the order given, all or nothing. Paths that are no UTF-8 are escaped."""
    rows = (json.dumps(dataclasses.asdict(reject), ensure_ascii=False) for reject in rejects)
    write_atomically(path, (f"{row}\n".encode(errors="backslashreplace") for row in rows))


def portable_path(audio: str, folder: Path) -> str:
    """`audio` relative to `folder` when it lies below it, else as it is."""
    below = audio.removeprefix(f"{folder}/")
    return audio if below.startswith("/") else below
