"""CMU-MOSEI: people who speak about something to their camera, on YouTube; long films in marked pieces.

    Raw/Audio/Full/WAV_16000/VIDEO.wav
    Raw/Transcript/Segmented/Combined/VIDEO.txt       VIDEO___CLIP___START___END___TEXT
    CMU_MOSEI_Labels.csd                              or Raw/Labels/5000_batch_raw.csv and others

Raters gave each piece a strength from 0 to 3 in six emotions. Its label is the strongest; two that are equally strong
are none, all of them 0 are neutral. Disgust and fear are rejected.

Splits: those of the makers where `cmu_mosei_std_folds.py` of their CMU-MultimodalSDK lies in the root, or beside it (it
is read, not run). A video that it leaves out is in `train`. Where it is not there, a hash of the video's name puts 70 %
into `train`, 9 % into `dev` and 21 % into `test`: the same for everyone, but not the makers'. No video is in two.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable
from pathlib import Path

from shards.corpora.corpus import Corpus, Items, audio_fault, other_emotion
from shards.corpora.mosei_labels import EMOTIONS, Ratings, read_ratings
from shards.corpora.text import decoded
from shards.manifest import Reject
from shards.sample import Utterance

_OURS = {"happy": "happy", "sad": "sad", "anger": "angry", "surprise": "surprise"}
_TRANSCRIPTS = Path("Transcript", "Segmented", "Combined")
_AUDIO = Path("Audio", "Full", "WAV_16000")
_FOLDS = "cmu_mosei_std_folds.py"
_FOLD_OF = {"standard_train_fold": "train", "standard_valid_fold": "dev", "standard_test_fold": "test"}
_PERCENT_TRAIN, _PERCENT_DEV = 70, 9
_LAYOUT = f"CMU-MOSEI's root holds Raw/{_TRANSCRIPTS}, Raw/{_AUDIO} and the labels"


def read(root: Path) -> Items:
    """Yields an utterance or a reject per line of the transcripts, by video, and a reject per rating that says nothing.
    Raises ValueError when there are no transcripts or no labels, or labels or splits that cannot be read."""
    root = root.absolute()
    raw = next(
        (base for base in (root, root / "Raw", root / "CMU_MOSEI" / "Raw") if (base / _TRANSCRIPTS).is_dir()), None
    )
    if raw is None:
        raise ValueError(f"{root}: no Raw/{_TRANSCRIPTS} in it; {_LAYOUT}")
    ratings, split_of = read_ratings(root, raw), _splits((raw, root, root.parent))
    yield from ratings.rejects
    for path in sorted((raw / _TRANSCRIPTS).glob("[!.]*.txt")):
        yield from _read_video(path, raw / _AUDIO / f"{path.stem}.wav", ratings, split_of(path.stem))


def _read_video(path: Path, audio: Path, ratings: Ratings, split: str) -> Items:
    data = path.read_bytes()
    if b"\0" in data:
        yield Reject(str(path), "bad_line", "binary, not a transcript")
        return
    fault = audio_fault(audio)
    for number, line in enumerate(decoded(data).split("\n"), start=1):
        if line.strip():
            found = _read_line(line, f"{path}:{number}", audio, ratings, split)
            yield fault if fault and isinstance(found, Utterance) else found


def _read_line(line: str, source: str, audio: Path, ratings: Ratings, split: str) -> Utterance | Reject:
    video = audio.stem
    try:
        clip, start, end, text = line.removeprefix(f"{video}___").split("___", 3)  # texts have runs of underscores
        start_s, end_s = float(start), float(end)
    except ValueError:
        return Reject(source, "bad_line", "is not VIDEO___CLIP___START___END___TEXT of this video")
    if not 0 <= start_s < end_s or not clip.isdecimal():
        return Reject(source, "bad_line", f"clip {clip!r} from {start} s to {end} s is no piece of a film")
    strengths = ratings.of(video, clip, start_s, end_s)
    if strengths is None:
        return Reject(source, "unknown_emotion", "no rating of this piece among the labels")
    strongest = [name for name, value in zip(EMOTIONS, strengths, strict=True) if value == max(strengths)]
    if max(strengths) > 0 and len(strongest) > 1:
        return Reject(source, "unknown_emotion", f"{' and '.join(strongest)} are equally strong")
    if max(strengths) > 0 and strongest[0] not in _OURS:
        return other_emotion(source, repr(strongest[0]))
    return Utterance(
        id=f"mosei-{video}-{clip}", audio=str(audio), text=text, corpus="mosei", start_s=start_s,
        duration_s=round(end_s - start_s, 6), emotion=_OURS[strongest[0]] if max(strengths) > 0 else "neutral",
        speaker=video, language="en", split=split, licence=CORPUS.licence,
    )  # fmt: skip


def _splits(folders: tuple[Path, ...]) -> Callable[[str], str]:
    """The split of a video."""
    path = next(filter(Path.is_file, (folder / _FOLDS for folder in folders)), None)
    if path is None:
        return _split_by_hash
    splits: dict[str, str] = {}
    try:
        statements = ast.parse(path.read_text("utf-8")).body
        for node in (statement for statement in statements if isinstance(statement, ast.Assign)):
            name = node.targets[0]
            if isinstance(name, ast.Name) and name.id in _FOLD_OF:
                splits.update((str(video), _FOLD_OF[name.id]) for video in ast.literal_eval(node.value))
    except (SyntaxError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: not three lists of videos ({error}); download it again, or remove it") from None
    if {*splits.values()} != {*_FOLD_OF.values()}:
        raise ValueError(f"{path}: holds no lists {', '.join(_FOLD_OF)}; download it again, or remove it")
    return lambda video: splits.get(video, "train")


def _split_by_hash(video: str) -> str:
    percent = int.from_bytes(hashlib.sha256(video.encode()).digest()[:8], "big") % 100
    return "train" if percent < _PERCENT_TRAIN else "dev" if percent < _PERCENT_TRAIN + _PERCENT_DEV else "test"


CORPUS = Corpus(
    title="CMU-MOSEI",
    url="http://multicomp.cs.cmu.edu/resources/cmu-mosei-dataset",
    licence="CMU-MOSEI terms: research only",
    read=read,
    official={"train": 16_326, "dev": 1871, "test": 4659},
)
