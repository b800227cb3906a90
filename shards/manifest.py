"""The manifest: one utterance per line of JSON, and beside it what had to be rejected and why.

In memory audio paths are absolute; on disk they are relative to the manifest's folder where they lie below it, so that
a corpus and its manifest can be moved together.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cluster.files import write_atomically
from shards.sample import Utterance

_MAX_ERRORS_SHOWN = 10


@dataclass(frozen=True)
class Reject:
    """An input that was left out. `source` says where it stood (`file:line`, path or id).

    `reason` is a code: bad_json, no_text, unknown_emotion, duplicate_id; of audio missing_audio, unreadable,
    empty_audio, too_short, too_long, nan, silent; of the LLM llm_empty, llm_refusal. `detail` is a sentence.
    """

    source: str
    reason: str
    detail: str


def read_manifest(path: Path) -> list[Utterance]:
    """The utterances in file order, audio paths made absolute.

    Raises ValueError with one line `file:line: what is wrong` per bad line (the first ten), for an id that occurs
    twice, and for a manifest without utterances; OSError when the file cannot be read.
    """
    utterances: list[Utterance] = []
    first_line: dict[str, int] = {}
    errors: list[str] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                utterance = Utterance.from_json(parse_line(line))
                if utterance.id in first_line:
                    raise ValueError(f"id {utterance.id!r} was already used in line {first_line[utterance.id]}")
            except ValueError as error:
                errors.append(f"{path}:{number}: {error}")
                continue
            first_line[utterance.id] = number
            utterances.append(dataclasses.replace(utterance, audio=str(path.absolute().parent / utterance.audio)))
    if errors:
        more = len(errors) - _MAX_ERRORS_SHOWN
        shown = errors[:_MAX_ERRORS_SHOWN] + ([f"... and {more} more bad lines"] if more > 0 else [])
        raise ValueError("\n".join(shown))
    if not utterances:
        raise ValueError(f"{path}: an empty manifest; make one with `blsp manifest READER ROOT {path}`")
    return utterances


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
    folder = path.absolute().parent
    rows = (
        dataclasses.replace(utterance, audio=portable_path(utterance.audio, folder)).to_json()
        for utterance in sorted(utterances, key=lambda utterance: utterance.id)
    )
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def write_rejects(path: Path, rejects: Iterable[Reject]) -> None:
    """Write one JSON object per reject, in the order given, all or nothing."""
    rows = (json.dumps(dataclasses.asdict(reject), ensure_ascii=False) + "\n" for reject in rejects)
    write_atomically(path, "".join(rows).encode())


def portable_path(audio: str, folder: Path) -> str:
    """`audio` relative to `folder` when it lies below it, else as it is."""
    path = Path(audio)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else audio
