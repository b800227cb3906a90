"""LibriSpeech: a thousand hours of audiobooks, read in English. Mini LibriSpeech has the same layout.

    LibriSpeech/train-clean-100/84/121123/84-121123-0000.flac       speaker 84, chapter 121123
    LibriSpeech/train-clean-100/84/121123/84-121123.trans.txt       84-121123-0000 GO DO YOU HEAR

The splits are the folders that are there, under their own names. Transcripts have capitals and no punctuation.
"""

from __future__ import annotations

import re
from pathlib import Path

from shards.corpora.corpus import Corpus, Items, audio_fault
from shards.corpora.lines import lines
from shards.manifest import Reject
from shards.sample import Utterance

_SPLIT = re.compile(r"(train|dev|test)-(clean|other)(-\d+)?")
_ENDINGS = (".flac", ".wav")


def read(root: Path) -> Items:
    """Yields an utterance or a reject per clip and per line of a transcript, split by split. Raises ValueError when
    there is no split in `root`, nor in a folder LibriSpeech in it."""
    for split in _splits(root.absolute()):
        for chapter in sorted(split.glob("*/*")):
            if chapter.is_dir():
                yield from _chapter(chapter, split.name)


def _splits(root: Path) -> list[Path]:
    if _SPLIT.fullmatch(root.name):
        return [root]
    for folder in (root, root / "LibriSpeech"):
        found = [path for path in sorted(folder.glob("*")) if _SPLIT.fullmatch(path.name) and path.is_dir()]
        if found:
            return found
    raise ValueError(
        f"{root}: holds no folder such as train-clean-100 or dev-clean; unpack the archives of "
        "openslr.org/12 (or 31, Mini LibriSpeech) and give the folder LibriSpeech that they make"
    )


def _chapter(chapter: Path, split: str) -> Items:
    """The transcript says which clips there are; those that it does not name are rejected too."""
    speaker = chapter.parent.name
    clips = {path.stem: path for path in sorted(chapter.iterdir()) if path.suffix in _ENDINGS and path.name[0] != "."}
    transcript = chapter / f"{speaker}-{chapter.name}.trans.txt"
    unnamed = clips.copy()
    for line in lines(transcript) if transcript.is_file() else ():
        if isinstance(line, Reject):
            yield line
            continue
        name, _, text = line[1].partition(" ")
        path = clips.get(name, chapter / f"{name}.flac")
        unnamed.pop(name, None)
        yield audio_fault(path) or Utterance(
            id=f"librispeech-{name}", audio=str(path), text=text, corpus="librispeech", speaker=speaker,
            session=chapter.name, language="en", split=split, licence=CORPUS.licence,
        )  # fmt: skip
    for path in unnamed.values():
        yield Reject(str(path), "no_text", f"{transcript.name} has no line {path.stem}")


CORPUS = Corpus(
    title="LibriSpeech",
    url="https://www.openslr.org/12",
    licence="CC-BY-4.0",
    read=read,
    official={
        "train-clean-100": 28539, "train-clean-360": 104014, "train-other-500": 148688, "dev-clean": 2703,
        "dev-other": 2864, "test-clean": 2620, "test-other": 2939,
    },
)  # fmt: skip
