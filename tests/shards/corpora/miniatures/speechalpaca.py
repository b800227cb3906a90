"""SpeechAlpaca: `audios/00003-en-US-JasonNeural-cheerful.wav`, and lines with paths of the authors' machine."""

from __future__ import annotations

import json
from pathlib import Path

from tests.shards.corpora.miniatures import Made, tone

DEFECTS = ("missing_audio", "unknown_style", "bad_lines", "answers_beside", "empty_text")
_CLIPS = {
    "00003-en-US-JasonNeural-cheerful": "Come up with a birthday message.",
    "00104-en-US-AriaNeural-neutral": "Name three colours.",
    "00203-en-US-GuyNeural-sad": "Write to my landlord.",
    "00310-en-US-JennyNeural-angry": "Write a complaint.",
}


def make(root: Path, defect: str | None = None) -> Made:
    """Four voices in four styles."""
    lines = []
    for name, text in _CLIPS.items():
        tone(root / "audios" / f"{name}.wav")
        lines.append(_line(name, text))
    made = Made(root, {f"speechalpaca-{name}" for name in _CLIPS})
    if defect == "missing_audio":
        lines.append(_line("00005-en-US-JaneNeural-sad", "Sing."))
        made.dropped["missing_audio"] = 1
    elif defect == "unknown_style":
        lines.append(_line("00310-en-US-JennyNeural-whispering", "Sing."))
        made.dropped["unknown_emotion"] = 1
    elif defect == "bad_lines":
        lines += ["{", '{"audio": "a.wav", "emotion": "sad"}', '{"audio": 1, "text": "x", "emotion": "sad"}']
        made.dropped["bad_json"] = 3
    elif defect == "answers_beside":
        (root / "output_alpaca.jsonl").write_text('{"response": "Happy birthday!", "reference": ""}\n')
        made.dropped["bad_json"] = 1
    elif defect == "empty_text":
        lines.append(_line("00310-en-US-JennyNeural-angry", " "))
        made.dropped["no_text"] = 1
    (root / "test_alpaca.jsonl").write_text("\n".join(lines))
    return made


def _line(name: str, text: str) -> str:
    audio = f"/dataset/SpeechAlpacaEval/audios/{name}.wav"
    return json.dumps({"audio": audio, "text": text, "emotion": name.rpartition("-")[2]})
