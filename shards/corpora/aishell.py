"""AISHELL-1: 400 speakers reading Mandarin.

    data_aishell/wav/train/S0002/BAC009S0002W0122.wav
    data_aishell/transcript/aishell_transcript_v0.8.txt     BAC009S0002W0122 而 对 楼市 成交 抑制 作用 最 大 的 限购

It comes as one archive per speaker inside another one. The words of a transcript are joined, and full-width letters
become plain ones.
"""

from __future__ import annotations

import shlex
import string
from pathlib import Path

from shards.corpora.corpus import Corpus, Items, audio_fault, folder_of
from shards.corpora.lines import lines
from shards.manifest import Reject
from shards.sample import Utterance

_SPLITS = ("train", "dev", "test")
_TRANSCRIPT = "transcript/aishell_transcript_v0.8.txt"
_FULL_WIDTH = str.maketrans({chr(ord(c) + 0xFEE0): c for c in string.ascii_letters + string.digits})


def read(root: Path) -> Items:
    """Yields an utterance or a reject per clip, and a reject per line of the transcript without one. Raises ValueError
    when there is no data_aishell, no transcript in it, or no speaker was unpacked yet."""
    folder = folder_of(root, "data_aishell", "unpack data_aishell.tgz of openslr.org/33 and give the folder it makes")
    if not (folder / _TRANSCRIPT).is_file():
        raise ValueError(f"{folder / _TRANSCRIPT}: no such file; unpack data_aishell.tgz again")
    clips = {path.stem: path for split in _SPLITS for path in sorted((folder / "wav" / split).glob("*/[!.]*.wav"))}
    if not clips:
        raise ValueError(f"{folder}: holds no clips in wav/train, wav/dev or wav/test; {_unpack(folder)}")
    unnamed = clips.copy()
    for line in lines(folder / _TRANSCRIPT):
        if isinstance(line, Reject):
            yield line
            continue
        source, (name, *words) = line[0], line[1].split()
        path = clips.get(name)
        unnamed.pop(name, None)
        if path is None:
            yield _without_clip(name, source, folder)
            continue
        yield audio_fault(path) or Utterance(
            id=f"aishell-{name}", audio=str(path), text="".join(words).translate(_FULL_WIDTH), corpus="aishell",
            speaker=path.parent.name, language="zh", split=path.parent.parent.name, licence=CORPUS.licence,
        )  # fmt: skip
    for path in unnamed.values():
        yield Reject(str(path), "no_text", f"the transcript has no line {path.stem}")


def _without_clip(name: str, source: str, folder: Path) -> Reject:
    """The name says which speaker's archive the clip is in."""
    archive = folder / "wav" / f"{name[6:11]}.tar.gz"
    detail = _unpack(folder) if archive.is_file() else "copy the corpus again"
    return Reject(source, "missing_audio", f"no clip {name}.wav below wav; {detail}")


def _unpack(folder: Path) -> str:
    command = f"cd {shlex.quote(str(folder / 'wav'))} && for a in *.tar.gz; do tar -xzf $a; done"
    return f"each speaker is an archive of its own: {command}"


CORPUS = Corpus(
    title="AISHELL-1",
    url="https://www.openslr.org/33",
    licence="Apache-2.0",
    read=read,
    official={"train": 120098, "dev": 14326, "test": 7176},
)
