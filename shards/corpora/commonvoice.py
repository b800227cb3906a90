"""Common Voice: sentences read by volunteers, in many languages, of any release.

    cv-corpus-17.0-2024-03-15/en/train.tsv              client_id path sentence ... separated by tabs, never quoted
    cv-corpus-17.0-2024-03-15/en/clips/common_voice_en_1.mp3

Columns are found by their names, for they have come and gone (`accent` became `accents`; `variant`, `sentence_id` and
others were added). The splits are train, dev and test, which share no speaker; validated.tsv and other tables repeat
them or are not checked. Lengths in clip_durations.tsv are not used: they differ from what decoders make of an MP3.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from shards.corpora.corpus import Corpus, Items, audio_fault
from shards.corpora.lines import rows
from shards.manifest import Reject
from shards.sample import Utterance

_SPLITS = ("train", "dev", "test")
_DEPTHS = ("", "*/", "*/*/")
_COLUMNS = ("client_id", "path", "sentence")
_LOCALE = re.compile(r"([a-z]{2,3})(-\w+)*")


def read(root: Path) -> Items:
    """Yields an utterance or a reject per line of the tables, of all languages that are there. Raises ValueError when
    there is no table of a split in `root`, nor up to two folders further in, or one lacks a column."""
    for folder in _languages(root.absolute()):
        for split in _SPLITS:
            table = folder / f"{split}.tsv"
            for row in rows(table, _COLUMNS) if table.is_file() else ():
                yield row if isinstance(row, Reject) else _clip(row[1], row[0], table, split)


def _languages(root: Path) -> list[Path]:
    for depth in _DEPTHS:
        found = sorted({table.parent for split in _SPLITS for table in root.glob(f"{depth}{split}.tsv")})
        if found:
            return found
    delta = any(any(root.glob(f"{depth}validated.tsv")) for depth in _DEPTHS)
    partial = " (a delta release has no splits; take the full one)" if delta else ""
    raise ValueError(
        f"{root}: holds no train.tsv, dev.tsv or test.tsv{partial}; unpack a release of Common Voice and give its "
        "folder, such as cv-corpus-17.0-2024-03-15, or that of one language in it"
    )


def _clip(row: dict[str, str], source: str, table: Path, split: str) -> Utterance | Reject:
    name = PurePosixPath(row["path"]).name
    if not name:
        return Reject(source, "bad_line", "no path of a clip")
    path = table.parent / "clips" / (name if "." in name else f"{name}.mp3")  # the first releases left the ending out
    locale = _LOCALE.fullmatch(row.get("locale") or table.parent.name)
    return audio_fault(path) or Utterance(
        id=f"commonvoice-{path.stem}", audio=str(path), text=row["sentence"], corpus="commonvoice",
        speaker=row["client_id"] or None, language=locale[1] if locale else None, split=split, licence=CORPUS.licence,
    )  # fmt: skip


CORPUS = Corpus(
    title="Common Voice",
    url="https://commonvoice.mozilla.org",
    licence="CC0-1.0",
    read=read,
)
