"""Tables and transcripts of others, line by line: a line that is no text costs that line."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from shards.manifest import Reject


def lines(path: Path, others: Sequence[str] = ()) -> Iterator[tuple[str, str] | Reject]:
    """(`file:number`, line) of every line that says something, of a UTF-8 file or one that gzip has packed (.gz); a
    reject of every line that is not UTF-8, nor in one of the `others` (encodings, that some lines have). White space in
    a line is left as it is, a byte order mark is not.

    Raises OSError when the file cannot be read, ValueError when gzip's end is missing.
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        number = 0
        try:
            for number, data in enumerate(file, start=1):
                source, line = f"{path}:{number}", _decoded(data, ("utf-8-sig" if number == 1 else "utf-8", *others))
                if line is None:
                    yield Reject(source, "bad_line", "not UTF-8 text")
                elif line.strip():
                    yield source, line.rstrip("\r\n")
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: broken off after line {number} ({error}); download it again") from None


def _decoded(data: bytes, encodings: Sequence[str]) -> str | None:
    """In the first encoding that fits, None if none does."""
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return None


def rows(
    table: Path, needed: Sequence[str], delimiter: str = "\t", *, quoted: bool = False, others: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, str]] | Reject]:
    """(`file:number`, cells by the names in the table's first line), or a reject of a line that has not as many cells.

    A row is one line: a quotation mark that nobody closes costs no more than its own. Unless cells are `quoted`, such
    marks are part of the text. Raises ValueError when the first line lacks a `needed` name, and as `lines` does, which
    explains `others`.
    """
    header: list[str] | None = None
    for line in lines(table, others):
        if isinstance(line, Reject):
            yield line
            continue
        source, text = line
        try:
            cells = next(csv.reader([text], delimiter=delimiter)) if quoted else text.split(delimiter)
        except csv.Error as error:
            yield Reject(source, "bad_line", f"not a row of a table ({error})")
            continue
        if header is None:
            header = cells
            if missing := [name for name in needed if name not in header]:
                raise ValueError(f"{table}: its first line names no column {missing[0]}; it has {', '.join(header)}")
        elif len(cells) == len(header):
            yield source, dict(zip(header, cells, strict=True))
        else:
            yield Reject(source, "bad_line", f"{len(cells)} columns where the first line has {len(header)}")
