"""IEMOCAP: labels and transcripts by dialogue, clips by turn, and folders that nobody needs."""

from __future__ import annotations

from pathlib import Path

from tests.shards.corpora.miniatures import Made, tone

DEFECTS = (
    "other_labels", "no_transcript_line", "no_transcript_file", "missing_audio", "zero_bytes", "bad_label_line",
    "apple_doubles", "only_noise", "windows_text", "the_folder_above", "turn_twice",
)  # fmt: skip
# By dialogue: start, end, last part of the name, label, words. Lines stand in the order of the listeners' work.
_DIALOGUES: dict[str, list[tuple[float, float, str, str, str]]] = {
    "Ses01F_impro01": [
        (6.2901, 8.2357, "F000", "neu", "Excuse me."),
        (14.8872, 18.0175, "M001", "ang", "Okay. [LAUGHTER] Did you have the forms?"),
        (10.0100, 11.3925, "M000", "sur", "Do you have your forms?"),
    ],
    "Ses01F_script01_1": [(1.0000, 3.5000, "M000", "hap", "It is in the hot [BREATHING] sun.")],
    "Ses05M_script01_1b": [
        (2.0000, 4.0000, "F000", "exc", "Where is he?"),
        (3.0000, 5.0000, "M000", "sad", "I can't see."),
    ],
}
_RATERS = "C-E2:\tNeutral;\t()\nC-F1:\tNeutral;\t(curious)\nA-E3:\tval 3; act 2; dom  2;\t()\n"


def make(root: Path, defect: str | None = None) -> Made:
    """Two sessions, three dialogues."""
    top = root / "IEMOCAP_full_release"
    for dialogue, turns in _DIALOGUES.items():
        _write_dialogue(top, dialogue, list(turns))
    made = Made(top, {f"iemocap-{name}_{turn[2]}" for name, turns in _DIALOGUES.items() for turn in turns})
    labels, words, clip = _paths(top, "Ses01F_impro01", "F003")
    _plant(defect, made, labels, words, clip)
    if defect == "the_folder_above":
        made.root = root
    return made


def _plant(defect: str | None, made: Made, labels: Path, words: Path, clip: Path) -> None:
    line = "[30.0000 - 31.0000]\tSes01F_impro01_F003\tneu\t[2.5000, 2.5000, 2.5000]\n"
    said = "Ses01F_impro01_F003 [030.0000-031.0000]: Yes.\n"
    if defect == "other_labels":
        for number, label in enumerate(("fru", "xxx", "fea", "dis", "oth")):
            _append(labels, line.replace("F003", f"F00{number + 3}").replace("neu", label))
        made.dropped["unknown_emotion"] = 5
    elif defect == "no_transcript_line":
        _append(labels, line)
        _append(words, "Ses01F_impro01_FXX0 [030.0000-031.0000]: Yes.\nF: Yes.\n\n")
        made.dropped["no_text"] = 1
    elif defect == "no_transcript_file":
        words.unlink()
        lost = {name for name in made.kept if "Ses01F_impro01" in name}
        made.kept -= lost
        made.dropped["no_text"] = len(lost)
    elif defect in ("missing_audio", "zero_bytes"):
        _append(labels, line)
        _append(words, said)
        if defect == "zero_bytes":
            clip.touch()
        made.dropped["missing_audio" if defect == "missing_audio" else "empty_audio"] = 1
    elif defect == "bad_label_line":
        _append(labels, "[30.0000 - ]\tSes01F_impro01_F003\tneu\n")
        made.dropped["bad_line"] = 1
    elif defect == "apple_doubles":
        for path in (labels, words, clip):
            path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X\n[\x00")
    elif defect == "only_noise":
        _append(labels, line)
        _append(words, said.replace("Yes.", "[LAUGHTER] [GARBAGE]"))
        tone(clip)
        made.dropped["no_text"] = 1
    elif defect == "windows_text":
        words.write_bytes(
            words.read_text("utf-8").replace("Excuse me.", "That’s me…").replace("\n", "\r\n").encode("cp1252")
        )
        labels.write_bytes(labels.read_bytes().replace(b"\n", b"\r\n"))
    elif defect == "turn_twice":
        _append(labels, "[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]\n")
        made.dropped["duplicate_id"] = 1


def _append(path: Path, text: str) -> None:
    path.write_text(path.read_text("utf-8") + text, "utf-8")


def _paths(top: Path, dialogue: str, turn: str) -> tuple[Path, Path, Path]:
    """(labels, transcript, clip)."""
    session = top / f"Session{int(dialogue[3:5])}"
    return (
        session / "dialog" / "EmoEvaluation" / f"{dialogue}.txt",
        session / "dialog" / "transcriptions" / f"{dialogue}.txt",
        session / "sentences" / "wav" / dialogue / f"{dialogue}_{turn}.wav",
    )


def _write_dialogue(top: Path, dialogue: str, turns: list[tuple[float, float, str, str, str]]) -> None:
    labels, words, _ = _paths(top, dialogue, "")
    for folder in ("Attribute", "Categorical", "Self-evaluation"):
        (labels.parent / folder).mkdir(parents=True, exist_ok=True)
        (labels.parent / folder / f"{dialogue}_e2.txt").write_text(f"{dialogue}_F000 :Neutral state; ()\n")
    words.parent.mkdir(parents=True, exist_ok=True)
    blocks = [
        f"[{start:.4f} - {end:.4f}]\t{dialogue}_{turn}\t{label}\t[2.5000, 2.5000, 2.5000]\n{_RATERS}\n"
        for start, end, turn, label, _ in turns
    ]
    labels.write_text("% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n" + "".join(blocks))
    lines = [f"{dialogue}_{turn} [{start:08.4f}-{end:08.4f}]: {text}\n" for start, end, turn, _, text in turns]
    words.write_text("".join(lines) + "M: Yeah.\n")
    for _, _, turn, _, _ in turns:
        tone(_paths(top, dialogue, turn)[2])
