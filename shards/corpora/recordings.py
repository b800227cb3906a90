"""Hours of speech per file, and one JSON file that says where in which file each utterance is: GigaSpeech, WenetSpeech.

That file has gigabytes. It is streamed: what is in memory at once is one recording with its utterances.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ijson

from shards.corpora.corpus import Items, audio_fault
from shards.manifest import Reject
from shards.sample import Utterance


@dataclass(frozen=True)
class Segment:
    """An utterance in a recording. `fields` are all that the file says of it."""

    source: str
    id: str
    recording: str
    audio: Path
    begin_s: float
    end_s: float
    subsets: frozenset[str]
    fields: dict[str, Any]

    @property
    def duration_s(self) -> float:
        """To a microsecond: the file's numbers are decimal."""
        return round(self.end_s - self.begin_s, 6)

    def text(self, name: str) -> str:
        """The text in a field. Raises ValueError when there is none."""
        value = self.fields.get(name)
        if not isinstance(value, str):
            raise ValueError(f"its field {name!r} is no text, but {value!r}")
        return value


def read_segments(
    root: Path, name: str, splits: Mapping[str, str], read_one: Callable[[Segment, str], Utterance | Reject]
) -> Items:
    """What `read_one` makes of each segment and its split, or a reject where its recording is not there.

    The file is `name`.json in `root` or in a folder `name` in it; it has an array `audios`, and its paths are relative
    to its folder. `splits` maps our names of splits to its names of subsets, which it may put in braces; the first
    that a segment is in counts, and segments in none are left out. A ValueError of `read_one` is a `bad_json`. Raises
    ValueError when there is no such file, or it breaks off or names no recordings.
    """
    fault = functools.lru_cache(maxsize=1)(audio_fault)
    table = _table(root.absolute(), name)
    for number, recording in enumerate(_recordings(table), start=1):
        for segment in _segments(recording, f"{table}: recording {number}", table.parent):
            if isinstance(segment, Reject):
                yield segment
                continue
            split = next((split for split, subset in splits.items() if subset in segment.subsets), None)
            if split is None:
                continue
            try:
                item = read_one(segment, split)
            except ValueError as error:
                item = Reject(segment.source, "bad_json", str(error))
            missing = fault(segment.audio) if isinstance(item, Utterance) else None
            yield missing or item


def _table(root: Path, name: str) -> Path:
    for table in (root / f"{name}.json", root / name / f"{name}.json"):
        if table.is_file():
            return table
    raise ValueError(f"{root}: holds no {name}.json; give the folder that has it beside the folder 'audio'")


def _recordings(table: Path) -> Iterator[Any]:
    found = 0
    with table.open("rb") as file:
        try:
            for recording in ijson.items(file, "audios.item", use_float=True):
                found += 1
                yield recording
        except ijson.JSONError as error:
            detail = str(error).splitlines()[0]  # the others show the place with an arrow
            raise ValueError(
                f"{table}: breaks off or is not JSON after {found} recordings ({detail}); download it again"
            ) from None
    if not found:
        raise ValueError(f"{table}: its field 'audios' names no recordings")


def _segments(recording: Any, source: str, folder: Path) -> Iterator[Segment | Reject]:
    try:
        name, audio, segments = recording["aid"], folder / recording["path"], list(recording["segments"])
    except (KeyError, TypeError) as error:
        yield Reject(source, "bad_json", f"has no aid, path and segments ({error!r})")
        return
    for place, fields in enumerate(segments):
        try:
            begin_s, end_s = fields["begin_time"] + 0.0, fields["end_time"] + 0.0
            subsets = frozenset(subset.strip("{}") for subset in fields["subsets"])
            at = f"{source} ({name}), {fields['sid']}"
        except (AttributeError, KeyError, TypeError) as error:
            detail = f"has no sid, begin_time, end_time and subsets ({error!r})"
            yield Reject(f"{source} ({name}), segment {place + 1}", "bad_json", detail)
            continue
        yield Segment(at, fields["sid"], name, audio, begin_s, end_s, subsets, fields)
