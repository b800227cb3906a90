"""RAVDESS: `Actor_01/03-01-05-02-01-01-01.wav`, at 48 kHz."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.shards.corpora.miniatures import Made, tone

DEFECTS = ("kaggle_copy", "calm_and_others", "songs_and_videos", "stereo", "zero_bytes", "flat")
_NAMES = (
    "03-01-01-01-01-01-01",
    "03-01-03-02-02-01-02",
    "03-01-04-01-01-02-04",
    "03-01-05-02-02-02-11",
    "03-01-08-01-01-01-24",
)


def make(root: Path, defect: str | None = None) -> Made:
    """Five actors of all splits, all five emotions, both sentences."""
    folder = root / "Audio_Speech_Actors_01-24"
    paths = {name: folder / f"Actor_{name[-2:]}" / f"{name}.wav" for name in _NAMES}
    if defect == "flat":
        paths = {name: root / f"{name}.wav" for name in _NAMES}
    for path in paths.values():
        tone(path, seconds=0.2, rate=48000, channels=2 if defect == "stereo" else 1)
    made = Made(root, {f"ravdess-{name}" for name in _NAMES})
    actor = folder / "Actor_01"
    if defect == "kaggle_copy":
        shutil.copytree(folder, root / "audio_speech_actors_01-24")
        made.dropped["duplicate_id"] = len(_NAMES)
    elif defect == "calm_and_others":
        for emotion in ("02", "06", "07"):
            tone(actor / f"03-01-{emotion}-01-01-01-01.wav", seconds=0.2, rate=48000)
        made.dropped["unknown_emotion"] = 3
    elif defect == "songs_and_videos":
        for name in ("03-02-03-01-01-01-01", "01-01-03-01-01-01-01"):
            tone(actor / f"{name}.wav", seconds=0.2, rate=48000)
        made.dropped["not_speech"] = 2
    elif defect == "zero_bytes":
        (actor / "03-01-03-01-01-01-01.wav").touch()
        made.dropped["empty_audio"] = 1
    return made
