"""GigaSpeech: `GigaSpeech.json` beside `audio`, minutes of it in each Opus file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.shards.corpora.miniatures import Made, tone

DEFECTS = (
    "smaller_subset", "garbage_tag", "missing_audio", "backwards", "no_text_field", "number_for_text", "no_begin",
    "number_for_subsets",     "no_path", "empty_text", "same_id_twice", "in_no_subset",
)  # fmt: skip


def make(root: Path, defect: str | None = None) -> Made:
    """Three recordings of two segments: training set, dev, test."""
    sets = {"POD0000000001": ["{XL}", "{M}"], "POD1000000001": ["{DEV}"], "YOU1000000001": ["{TEST}"]}
    audios = [_recording(root, aid, subsets) for aid, subsets in sets.items()]
    made = Made(root, {f"gigaspeech-{segment['sid']}" for audio in audios for segment in audio["segments"]})
    train, first = audios[0], audios[0]["segments"][0]
    lost = f"gigaspeech-{first['sid']}"
    if defect == "smaller_subset":
        first["subsets"] = ["{XL}"]
        made.subset = "M"
        made.kept.remove(lost)
    elif defect == "garbage_tag":
        first["text_tn"] = "<MUSIC>"
        made.drop(lost, "not_speech")
    elif defect == "missing_audio":
        (root / "GigaSpeech" / train["path"]).unlink()
        for segment in train["segments"]:
            made.drop(f"gigaspeech-{segment['sid']}", "missing_audio")
    elif defect == "backwards":
        first["end_time"] = first["begin_time"]
        made.drop(lost, "bad_json")
    elif defect in ("no_text_field", "number_for_text", "no_begin", "number_for_subsets"):
        field = {"number_for_text": "text_tn", "number_for_subsets": "subsets"}.get(defect)
        first |= {field: 7} if field else {}
        first.pop({"no_text_field": "text_tn", "no_begin": "begin_time"}.get(defect), None)
        made.drop(lost, "bad_json")
    elif defect == "no_path":
        del train["path"]
        made.kept -= {f"gigaspeech-{segment['sid']}" for segment in train["segments"]}
        made.dropped["bad_json"] = 1
    elif defect == "empty_text":
        first["text_tn"] = " "
        made.drop(lost, "no_text")
    elif defect == "same_id_twice":
        train["segments"].append(first)
        made.dropped["duplicate_id"] = 1
    elif defect == "in_no_subset":
        first["subsets"] = []
        made.kept.remove(lost)
    whole = {"dataset": "GigaSpeech", "language": "EN", "version": "v1.0.0", "audios": audios}
    (root / "GigaSpeech" / "GigaSpeech.json").write_text(json.dumps(whole, indent=4), encoding="utf-8")
    return made


def _recording(root: Path, aid: str, subsets: list[str]) -> dict[str, Any]:
    source = "podcast" if aid.startswith("POD") else "youtube"
    path = f"audio/{source}/P0001/{aid}.opus"
    tone(root / "GigaSpeech" / path, format="OGG", subtype="OPUS")
    times = {"begin_time": 0.1, "end_time": 0.45}, {"begin_time": 0.5, "end_time": 0.9}
    said = {"speaker": "N/A", "text_tn": "FOUR O'CLOCK <COMMA> SAID WILLIAMS <PERIOD>"}
    segments = [
        {"sid": f"{aid}_S000000{number}", **said, **span, "subsets": [*subsets]} for number, span in enumerate(times)
    ]
    return {
        "title": "a", "url": "http://a", "path": path, "aid": aid, "source": source, "format": "opus",
        "sample_rate": 16000, "channels": 1, "md5": "0", "duration": 1.0, "segments": segments,
    }  # fmt: skip
