"""ESD: ten speakers of Mandarin and ten of English, who say the same 350 sentences in five emotions.

    0011/0011.txt                                0011_000001<TAB>The nine the eggs, I keep.<TAB>Neutral
    0011/Neutral/0011_000001.wav                 or 0011/Neutral/evaluation/0011_000001.wav

A speaker's clips are numbered through: 350 of each emotion. The splits are the makers' own: of each 350 the first 20
are `dev`, the next 30 `test`, the others `train`, which is what the folders evaluation, test and train hold where they
are there. All speakers are in all splits, but no sentence is in two; a split by speaker would have all sentences on
both sides.

The emotion is that of the folder, the words are the table's, whose encoding differs from speaker to speaker.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from shards.corpora.corpus import Corpus, Items, audio_fault, files_below
from shards.corpora.text import decoded
from shards.manifest import Reject
from shards.sample import Utterance

_LABELS = {"Neutral": "中立", "Happy": "快乐", "Angry": "生气", "Sad": "伤心", "Surprise": "惊喜"}
_EMOTIONS = {"Neutral": "neutral", "Happy": "happy", "Angry": "angry", "Sad": "sad", "Surprise": "surprise"}
_SPLITS = {"train": "train", "evaluation": "dev", "test": "test"}
_CLIP = re.compile(r"(?P<speaker>\d{4})_(?P<number>\d{6})")
# Some lines have a blank where a tab should be, some no label.
_LINE = re.compile(rf"\s*(\d{{4}}_\d{{6}})\s+(.*?)\s*(?:{'|'.join([*_LABELS, *_LABELS.values()])})?\s*")
_SENTENCES, _DEV, _TEST = 350, 20, 30
_FIRST_ENGLISH = 11
_LAYOUT = "ESD's root holds folders 0001 to 0020, each with its table (0001.txt) and folders Angry, Happy, ..."


def read(root: Path) -> Items:
    """Yields an utterance or a reject per clip, speaker by speaker. Raises ValueError when there are no speakers in
    `root` nor in a folder of it."""
    for speaker in _speakers(root.absolute()):
        texts = _texts(speaker / f"{speaker.name}.txt")
        for path in sorted(path for path in files_below(speaker) if path.suffix.lower() == ".wav"):
            yield _read_clip(path, speaker, texts)


def _speakers(root: Path) -> Iterator[Path]:
    for base in (root, *sorted(path for path in root.glob("*") if path.is_dir())):
        found = [path for path in sorted(base.glob("00[012][0-9]")) if path.is_dir()]
        if found:
            return iter(found)
    raise ValueError(f"{root}: no folder of a speaker in it; {_LAYOUT}")


def _texts(table: Path) -> dict[str, str]:
    """Words by clip, empty when there is no table. Of English, bytes that are no UTF-8 are Windows' own quotes."""
    if not table.is_file():
        return {}
    encoding = "gb18030" if int(table.stem) < _FIRST_ENGLISH else "cp1252"
    found = map(_LINE.fullmatch, decoded(table.read_bytes(), encoding).splitlines())
    return {line[1]: line[2] for line in found if line}


def _read_clip(path: Path, speaker: Path, texts: dict[str, str]) -> Utterance | Reject:
    name, folders = _CLIP.fullmatch(path.stem), path.relative_to(speaker).parts[:-1]
    if name is None or name["speaker"] != speaker.name or not folders:
        return Reject(str(path), "unreadable", "its path is not one like 0011/Angry/0011_000351.wav")
    if folders[0] not in _EMOTIONS:
        return Reject(str(path), "unknown_emotion", f"the folder {folders[0]!r} is none of {', '.join(_EMOTIONS)}")
    if path.stem not in texts:
        return Reject(str(path), "no_text", f"{speaker.name}.txt has no line for it")
    place = (int(name["number"]) - 1) % _SENTENCES
    by_number = "dev" if place < _DEV else "test" if place < _DEV + _TEST else "train"
    return audio_fault(path) or Utterance(
        id=f"esd-{path.stem}", audio=str(path), text=texts[path.stem], corpus="esd", emotion=_EMOTIONS[folders[0]],
        speaker=speaker.name, language="zh" if int(speaker.name) < _FIRST_ENGLISH else "en",
        split=_SPLITS.get(folders[-1], by_number), licence=CORPUS.licence,
    )  # fmt: skip


CORPUS = Corpus(
    title="ESD",
    url="https://hltsingapore.github.io/ESD",
    licence="ESD licence: research only, by signed agreement",
    read=read,
    official={"train": 30_000, "dev": 2000, "test": 3000},
    official_emotions={"neutral": 7000, "happy": 7000, "angry": 7000, "sad": 7000, "surprise": 7000},
)
