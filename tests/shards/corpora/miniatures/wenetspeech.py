"""WenetSpeech: `WenetSpeech.json` beside `audio`, minutes of it in each Opus file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.shards.corpora.miniatures import Made, tone

DEFECTS = (
    "smaller_subset", "weak_label", "no_confidence", "zero_bytes", "full_width_space", "empty_text", "weak_and_unused",
)  # fmt: skip
_RECORDINGS = {
    "Y0000000000_--5llN02F84": ("train/youtube/B00000", ["M", "L"]),
    "Y0000000001_dev": ("dev/youtube/B00000", ["DEV"]),
    "Y0000000002_net": ("test_net/youtube/B00000", ["TEST_NET"]),
    "M0000000003_meet": ("test_meeting/B00000", ["TEST_MEETING"]),
}


def make(root: Path, defect: str | None = None) -> Made:
    """A recording of two segments in each of the four sets."""
    audios = [_recording(root, aid, place, subsets) for aid, (place, subsets) in _RECORDINGS.items()]
    made = Made(root, {f"wenetspeech-{segment['sid']}" for audio in audios for segment in audio["segments"]})
    train, first = audios[0], audios[0]["segments"][0]
    lost = f"wenetspeech-{first['sid']}"
    if defect == "smaller_subset":
        first["subsets"] = ["L"]
        made.subset = "M"
        made.kept.remove(lost)
    elif defect in ("weak_label", "no_confidence"):
        first["confidence"] = 0.7 if defect == "weak_label" else None
        made.drop(lost, "weak_label")
    elif defect == "zero_bytes":
        (root / train["path"]).write_bytes(b"")
        for segment in train["segments"]:
            made.drop(f"wenetspeech-{segment['sid']}", "empty_audio")
    elif defect == "full_width_space":
        first["text"] = "怎么样\u3000我说 OK"
    elif defect == "empty_text":
        first["text"] = "\u3000"
        made.drop(lost, "no_text")
    elif defect == "weak_and_unused":
        first |= {"confidence": 0.7, "subsets": []}
        made.kept.remove(lost)
    (root / "WenetSpeech.json").write_text(json.dumps({"audios": audios}, ensure_ascii=False), encoding="utf-8")
    return made


def _recording(root: Path, aid: str, place: str, subsets: list[str]) -> dict[str, Any]:
    path = f"audio/{place}/{aid}/{aid}.opus"
    tone(root / path, format="OGG", subtype="OPUS")
    times = {"begin_time": 0.1, "end_time": 0.45}, {"begin_time": 0.5, "end_time": 0.9}
    segments = [
        {"sid": f"{aid}_S0000{number}", "text": "怎么样", "confidence": 1, **span, "subsets": [*subsets]}
        for number, span in enumerate(times)
    ]
    return {"aid": aid, "path": path, "duration": 1.0, "md5": "0", "url": "http://a", "segments": segments}
