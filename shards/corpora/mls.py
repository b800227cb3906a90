"""Multilingual LibriSpeech: audiobooks in eight languages, as FLAC or as Opus.

    mls_french_opus/train/transcripts.txt                       1579_2230_000000 <tab> et pour ne pas que ...
    mls_french_opus/train/audio/1579/2230/1579_2230_000000.opus     reader 1579, book 2230

The languages are those whose folders are there. Lists in limited_supervision repeat clips of train and are not read. A
reader of books in two languages is one speaker, and may be in train of one and in test of the other.
"""

from __future__ import annotations

import re
from pathlib import Path

from shards.corpora.corpus import Corpus, Items, audio_fault
from shards.corpora.lines import lines
from shards.manifest import Reject
from shards.sample import Utterance

_SPLITS = ("train", "dev", "test")
_FOLDER = re.compile(r"mls_(?P<language>[a-z]+)(?P<opus>_opus)?")
_CLIP = re.compile(r"(?P<speaker>\d+)_(?P<book>\d+)_\d+")
_LANGUAGES = {
    "dutch": "nl", "english": "en", "french": "fr", "german": "de",
    "italian": "it", "polish": "pl", "portuguese": "pt", "spanish": "es",
}  # fmt: skip


def read(root: Path) -> Items:
    """Yields an utterance or a reject per line of a transcript. Raises ValueError when `root` is no folder of a
    language, nor holds one, or none of its splits has a transcript."""
    folders = _languages(root.absolute())
    transcripts = [
        path for folder in folders for split in _SPLITS if (path := folder / split / "transcripts.txt").is_file()
    ]
    if not transcripts:
        names = ", ".join(folder.name for folder in folders) or "a folder such as mls_french_opus"
        raise ValueError(
            f"{root}: no transcripts.txt in train, dev or test of {names}; unpack the "
            " archives of openslr.org/94 and give the folder that they make, or the one above"
        )
    for transcript in transcripts:
        yield from _transcript(transcript)


def _languages(root: Path) -> list[Path]:
    """One folder per language; of one that is there twice, that with FLAC."""
    found: dict[str, Path] = {}
    for folder in (root, *sorted(root.glob("mls_*"))):
        name = _FOLDER.fullmatch(folder.name)
        if name and name["language"] in _LANGUAGES:
            found.setdefault(name["language"], folder)
    return [*found.values()]


def _transcript(path: Path) -> Items:
    folder, split = path.parent.parent, path.parent.name
    name = _FOLDER.fullmatch(folder.name)
    assert name is not None
    ending = ".opus" if name["opus"] else ".flac"
    for line in lines(path):
        if isinstance(line, Reject):
            yield line
            continue
        source, (clip, _, text) = line[0], line[1].partition("\t")
        parts = _CLIP.fullmatch(clip)
        if parts is None:
            yield Reject(source, "bad_line", f"{clip[:40]!r} is not a clip such as 1579_2230_000000")
            continue
        audio = path.parent / "audio" / parts["speaker"] / parts["book"] / f"{clip}{ending}"
        yield audio_fault(audio) or Utterance(
            id=f"mls-{clip}", audio=str(audio), text=text, corpus="mls", speaker=parts["speaker"],
            session=f"{parts['speaker']}_{parts['book']}", language=_LANGUAGES[name["language"]], split=split,
            licence=CORPUS.licence,
        )  # fmt: skip


CORPUS = Corpus(
    title="Multilingual LibriSpeech",
    url="https://www.openslr.org/94",
    licence="CC-BY-4.0",
    read=read,
)
