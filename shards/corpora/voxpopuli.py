"""VoxPopuli: speeches in the European Parliament, with transcripts in sixteen languages. Two layouts are read.

As its makers' `get_asr_data` (or the Hugging Face hub's archives) cut it, a file per utterance:

    transcribed_data/en/asr_train.tsv                           id raw_text normalized_text speaker_id split gender
    transcribed_data/en/2009/20090112-0900-PLENARY-3-en_20090112-17:07:23_2.ogg

or whole sessions, with `download_audios` alone, and the table of spans that belongs to them:

    raw_audios/original/2009/20090112-0900-PLENARY-3_original.ogg        or raw_audios/en/2009/..._en.ogg
    asr_en.tsv.gz           id_|paragraph_id|session_id|speaker_id|original_text|normed_text|...|start_time|end_time|...

The text is the original one, or the normalised one where there is no other. A span lasts from its first word to its
last, pauses included, which `get_asr_data` cuts out.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from shards.corpora.corpus import Corpus, Items, audio_fault, files_below
from shards.corpora.lines import rows
from shards.manifest import Reject
from shards.sample import Utterance

_SPLITS = ("train", "dev", "test")
_DEPTHS = ("", "*/", "*/*/")
_SESSIONS = re.compile(r"asr_(?P<language>[a-z]{2})(_accented)?\.tsv(\.gz)?")
_ENDINGS = (".ogg", ".wav", ".flac")
_CLIP_COLUMNS = ("id", "raw_text", "normalized_text", "speaker_id")
_SPAN_COLUMNS = ("id_", "session_id", "speaker_id", "original_text", "normed_text", "start_time", "end_time", "split")


def read(root: Path) -> Items:
    """Yields an utterance or a reject per line of the tables. Raises ValueError when there are none in `root`, nor up
    to two folders further in, or one lacks a column."""
    root = root.absolute()
    found = [path for depth in _DEPTHS for path in sorted(root.glob(f"{depth}asr_*.tsv*"))]
    cut = {path.parent for path in found if path.stem.removeprefix("asr_") in _SPLITS}
    for folder in sorted(cut):
        yield from _clips(folder)
    done = {folder.name for folder in cut}
    whole = {path.name: path for path in found if _SESSIONS.fullmatch(path.name)}
    for name, table in sorted(whole.items()):
        if not done & {table.parent.name, name.split(".")[0].removeprefix("asr_")}:
            yield from _spans(table, root)
    if not cut and not whole:
        raise ValueError(
            f"{root}: holds neither asr_train.tsv, asr_dev.tsv or asr_test.tsv nor a table of sessions such as "
            "asr_en.tsv.gz; run voxpopuli.get_asr_data, or put that table beside raw_audios"
        )


def _clips(folder: Path) -> Items:
    """A language that is cut into a file per utterance."""
    audio = {path.stem: path for path in sorted(files_below(folder)) if path.suffix.lower() in _ENDINGS}
    for split in _SPLITS:
        table = folder / f"asr_{split}.tsv"
        for found in rows(table, _CLIP_COLUMNS) if table.is_file() else ():
            if isinstance(found, Reject):
                yield found
                continue
            row, language = found[1], folder.name[:2]
            name = row["id"]
            path = audio.get(name, folder / f"{name}.ogg")
            yield audio_fault(path) or Utterance(
                id=f"voxpopuli-{name}", audio=str(path), text=row["raw_text"] or row["normalized_text"],
                corpus="voxpopuli", speaker=_speaker(row), session=name.partition(f"-{language}_")[0],
                language=language, split=split, licence=CORPUS.licence,
            )  # fmt: skip


def _spans(table: Path, root: Path) -> Items:
    """A language of which whole sessions are there."""
    name = _SESSIONS.fullmatch(table.name)
    assert name is not None
    language = name["language"]
    folder = root / "raw_audios" if (root / "raw_audios").is_dir() else root
    recording = functools.lru_cache(maxsize=1024)(_session)
    fault = functools.lru_cache(maxsize=1024)(audio_fault)
    for found in rows(table, _SPAN_COLUMNS, "|", quoted=True):
        if isinstance(found, Reject):
            yield found
            continue
        source, row = found
        if row["split"] in _SPLITS:
            path = recording(folder, row["session_id"], language)
            yield fault(path) or _span(row, source, path, language)
        else:
            yield Reject(source, "weak_label", f"its split is {row['split']!r}: its words do not fit its sound")


def _session(folder: Path, session: str, language: str) -> Path:
    """The recording of what was said in the room, or in the language's own channel, which is the same there."""
    original = folder / "original" / session[:4] / f"{session}_original.ogg"
    own = folder / language / session[:4] / f"{session}_{language}.ogg"
    return own if own.is_file() and not original.is_file() else original


def _span(row: dict[str, str], source: str, path: Path, language: str) -> Utterance | Reject:
    try:
        start_s = float(row["start_time"])
        return Utterance(
            id=f"voxpopuli-{row['session_id']}-{row['id_']}", audio=str(path), start_s=start_s,
            duration_s=round(float(row["end_time"]) - start_s, 6), text=row["original_text"] or row["normed_text"],
            corpus="voxpopuli", speaker=_speaker(row), session=row["session_id"], language=language,
            split=row["split"], licence=CORPUS.licence,
        )  # fmt: skip
    except ValueError as error:
        return Reject(source, "bad_line", str(error))


def _speaker(row: dict[str, str]) -> str | None:
    return None if row["speaker_id"] in ("", "None") else row["speaker_id"]


CORPUS = Corpus(
    title="VoxPopuli",
    url="https://github.com/facebookresearch/voxpopuli",
    licence="CC0-1.0",
    read=read,
)
