"""Any corpus that is described by a table: a .csv (commas) or .tsv (tabs) file with a line of names first.

    audio,text,emotion,speaker
    wav/0001.flac,"Oh, it was you.",surprise,anna

The names are fields of `Utterance`: `audio` and `text` must be there, the others may. A name that is none is refused:
a misspelt `emotion` must not pass for a corpus without. An empty cell is a field that is not given. Paths, ids and
pieces of files are as in JSON lines (`shards.corpora.jsonl`).

In .csv a cell may stand in quotes, a quote in it is doubled, and it may go over several lines. In .tsv quotes are like
any other character: transcripts have them unbalanced.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import io
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from shards.corpora.corpus import Corpus, Items
from shards.corpora.jsonl import read_record
from shards.manifest import Reject
from shards.sample import Utterance

_FIELDS = tuple(field.name for field in dataclasses.fields(Utterance) if field.name != "messages")
_NUMBERS = {"start_s": float, "duration_s": float, "turn": int}
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_MAX_RECORD_LINES = 20  # so that a quote which is never closed costs its own line, not all that follow


def read(root: Path) -> Items:
    """Yields an utterance or a reject per row, in file order. Raises ValueError when `root` is no .csv or .tsv file, or
    its first line does not say what the columns are."""
    delimiter = _DELIMITERS.get(root.suffix.lower())
    if delimiter is None or not root.is_file():
        raise ValueError(f"{root}: not a .csv or .tsv file, which the reader 'csv' takes")
    with root.open("rb") as file:
        found = _rows(file, delimiter, root)
        names = _names(next(found, None), root, delimiter)
        for row in found:
            yield row if isinstance(row, Reject) else _utterance(names, *row, root)


def _rows(lines: Iterable[bytes], delimiter: str, root: Path) -> Iterator[tuple[str, list[str]] | Reject]:
    """(`file:line`, cells) of every row that is not empty; the first one is that of the names."""
    numbered, ahead, width = enumerate(lines, start=1), deque[tuple[int, bytes]](), 0
    while first := ahead.popleft() if ahead else next(numbered, None):
        number, data = first
        if delimiter == "," and data.count(b'"') % 2:
            following = _cell_over_lines(data, numbered, ahead)
            whole = data + b"".join(following)
            if following and len(_cells(whole, delimiter) or ()) == width:
                data = whole
                for _ in following:
                    ahead.popleft()
        cells = _cells(data, delimiter)
        width = width or len(cells or ())
        if cells is None:
            yield Reject(f"{root}:{number}", "bad_line", "no row of a UTF-8 table; quotes must be closed, or doubled")
        elif any(cell.strip() for cell in cells):
            yield f"{root}:{number}", cells


def _cell_over_lines(
    data: bytes, numbered: Iterator[tuple[int, bytes]], ahead: deque[tuple[int, bytes]]
) -> list[bytes]:
    """The lines after `data` as far as the one that closes its quote, none if that stays open. They are put into
    `ahead`."""
    following: list[bytes] = []
    quotes = data.count(b'"')
    while quotes % 2 and len(following) < _MAX_RECORD_LINES:
        if len(ahead) == len(following):
            more = next(numbered, None)
            if more is None:
                return []
            ahead.append(more)
        following.append(ahead[len(following)][1])
        quotes += following[-1].count(b'"')
    return [] if quotes % 2 else following


def _cells(data: bytes, delimiter: str) -> list[str] | None:
    """None where `data` is no row."""
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    try:
        file = io.StringIO(data.decode("utf-8-sig").rstrip("\r\n"), newline="")
        return next(csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True), [])
    except (UnicodeDecodeError, csv.Error):
        return None


def _names(row: tuple[str, list[str]] | Reject | None, root: Path, delimiter: str) -> list[str]:
    """Those of the columns, from the first row. Raises ValueError when they are not what they must be."""
    if row is None:
        raise ValueError(f"{root}: an empty file; its first line names the columns, 'audio' and 'text' among them")
    if isinstance(row, Reject):
        raise ValueError(f"{row.source}: {row.detail}")
    names = [name.strip() for name in row[1]]
    if missing := sorted({"audio", "text"} - set(names)):
        separated = "commas" if delimiter == "," else "tabs"
        raise ValueError(
            f"{root}: no column {missing[0]!r}; the first line names the columns, with {separated} between them, and "
            f"reads {', '.join(names)[:200]!r}"
        )
    for name in names:
        if name not in _FIELDS:
            near = difflib.get_close_matches(name, _FIELDS, n=1)
            hint = f"is it {near[0]!r}? Columns" if near else "rename or remove it; columns"
            raise ValueError(f"{root}: unknown column {name!r}; {hint} are {', '.join(_FIELDS)}")
        if names.count(name) > 1:
            raise ValueError(f"{root}: {names.count(name)} columns {name!r}; leave one")
    return names


def _utterance(names: list[str], source: str, cells: list[str], root: Path) -> Utterance | Reject:
    if len(cells) != len(names):
        return Reject(source, "bad_line", f"{len(cells)} cells below {len(names)} names")
    record: dict[str, object] = {name: cell for name, cell in zip(names, cells, strict=True) if cell.strip()}
    record.setdefault("text", "")  # an empty transcript is told as such
    for name, kind in _NUMBERS.items():
        if name in record:
            try:
                record[name] = kind(str(record[name]))
            except ValueError:
                return Reject(source, "bad_line", f"{name} must be a number, got {record[name]!r}")
    return read_record(record, source, root, "bad_line")


CORPUS = Corpus(title="any corpus as a table", url="", licence="", read=read)
