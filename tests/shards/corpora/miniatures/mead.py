"""MEAD: `M003/audio/angry/level_2/017.m4a`, and the transcripts.tsv that its user has made."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.shards.corpora.miniatures import Made, tone
from tests.shards.films import write_film

DEFECTS = (
    "other_emotions", "no_line", "line_without_clip", "bad_lines", "foreign_file", "zero_bytes", "converted_too",
    "videos_too",
)  # fmt: skip
_CLIPS = ("M003 neutral 1 001", "M003 angry 3 030", "M040 happy 2 005", "W040 surprised 1 012", "W009 sad 2 001")


def clip(root: Path, place: str, suffix: str = ".m4a") -> Path:
    """A short tone at that place."""
    speaker, emotion, level, number = place.split()
    path = root / speaker / "audio" / emotion / f"level_{level}" / f"{number}{suffix}"
    if suffix == ".m4a":
        return write_film(path, 0.3 * np.sin(np.arange(11025) / 10), 44100)
    return tone(path)


def make(root: Path, defect: str | None = None) -> Made:
    """Four speakers of all splits."""
    for place in _CLIPS:
        clip(root, place)
    lines = [f"{place}\tSentence of {place}.".replace(" ", "\t", 3) for place in _CLIPS]
    made = Made(root, {"mead-" + "-".join(place.split()) for place in _CLIPS})
    if defect == "other_emotions":
        for emotion in ("contempt", "disgusted", "fear"):
            clip(root, f"M003 {emotion} 1 001")
        made.dropped["unknown_emotion"] = 3
    elif defect == "no_line":
        clip(root, "M003 angry 1 002")
        made.dropped["no_text"] = 1
    elif defect == "line_without_clip":
        lines.append("M003\tangry\t1\t029\tNobody says this.")
    elif defect == "bad_lines":
        lines += ["M003\tangry\tlevel_1\t001\tx", "M003\tangry\t1"]
        made.dropped["bad_line"] = 2
    elif defect == "foreign_file":
        clip(root, "M003 angry 9 001")
        made.dropped["unreadable"] = 1
    elif defect == "zero_bytes":
        (root / "M003/audio/angry/level_3/031.m4a").touch()
        lines.append("M003\tangry\t3\t31\tNumbers may lose their zeros.")
        made.dropped["empty_audio"] = 1
    elif defect == "converted_too":
        clip(root, _CLIPS[0], ".wav")
        made.dropped["duplicate_id"] = 1
    elif defect == "videos_too":
        (root / "M003/video/front/angry/level_3").mkdir(parents=True)
        (root / "M003/video/front/angry/level_3/030.mp4").touch()
    table = "\n".join(["\t".join(("speaker", "emotion", "level", "number", "text")), *lines])
    (root / "transcripts.tsv").write_text(table, "utf-8")
    return made
