"""RESD: `train.csv` and `test.csv` beside folders of dialogues, some at 44.1 kHz, some names with a space."""

from __future__ import annotations

from pathlib import Path

from tests.shards.corpora.miniatures import Made, tone

DEFECTS = ("other_emotions", "missing_audio", "bad_rows", "bom_and_crlf", "quoted_text", "empty_text")
_CLIPS = [  # split, folder, stem, emotion
    ("train", "happiness_neutral_32", "32_happiness_neutral_h_010", "happiness"),
    ("train", "happiness_neutral_32", "32_happiness_neutral_n_010", "neutral"),
    ("test", "happiness_neutral_32", "32_happiness_neutral_h_020", "happiness"),
    ("test", "08_sadness_anger", "08_sadness_anger a_010", "anger"),
    ("train", "08_sadness_anger", "08_sadness_anger s_020", "sadness"),
]


def make(root: Path, defect: str | None = None) -> Made:
    """Two dialogues of two voices, which are in both splits as in the corpus itself."""
    rows = {"train": ["name,path,text,emotion"], "test": ["name,path,text,emotion"]}
    for number, (split, folder, stem, emotion) in enumerate(_CLIPS):
        tone(root / split / folder / f"{stem}.wav", seconds=0.2, rate=44100 if number % 2 else 16000)
        rows[split].append(f"{stem},{folder}/{stem}.wav,Да что ты?,{emotion}")
    made = Made(root, {f"resd-{stem}" for _, _, stem, _ in _CLIPS})
    clip = "happiness_neutral_32/32_happiness_neutral_h_010.wav"
    if defect == "other_emotions":
        rows["test"] += [f"x,{clip},Да,{emotion}" for emotion in ("enthusiasm", "fear", "disgust")]
        made.dropped["unknown_emotion"] = 3
    elif defect == "missing_audio":
        rows["train"].append("x,gone/32_a_b_a_010.wav,Да,anger")
        made.dropped["missing_audio"] = 1
    elif defect == "bad_rows":
        rows["train"][1:1] = [f"x,{clip},Да, нет,anger", f'x,{clip},"Да,anger']
        made.dropped["bad_line"] = 2
    elif defect == "quoted_text":
        tone(root / "test/32/32_happiness_neutral_n_020.wav")
        rows["test"].append('x,32/32_happiness_neutral_n_020.wav,"Да, ""нет"".",neutral')
        made.kept.add("resd-32_happiness_neutral_n_020")
    elif defect == "empty_text":
        rows["train"].append(f"x,{clip},,anger")
        made.dropped["no_text"] = 1
    begin, end = ("\ufeff", "\r\n") if defect == "bom_and_crlf" else ("", "\n")
    for split, lines in rows.items():
        (root / f"{split}.csv").write_bytes((begin + end.join(lines) + end).encode())
    return made
