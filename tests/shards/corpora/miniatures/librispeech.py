"""LibriSpeech: `LibriSpeech/train-clean-100/84/121123/84-121123-0000.flac` beside one transcript per chapter."""

from __future__ import annotations

from pathlib import Path

from tests.shards.corpora.miniatures import Made, tone

DEFECTS = (
    "mini_librispeech", "zero_bytes", "missing_audio", "no_transcript", "unnamed_clip", "line_without_words",
    "line_twice", "not_utf8", "crlf", "apple_double", "truncated_audio",
)  # fmt: skip
SPLITS = {"train-clean-100": "84", "dev-clean": "1272", "test-other": "367"}


def make(root: Path, defect: str | None = None) -> Made:
    """Two clips by one speaker in each of three splits."""
    made = Made(root, set())
    splits = SPLITS if defect != "mini_librispeech" else {"train-clean-5": "19", "dev-clean-2": "84"}
    for split, speaker in splits.items():
        names = [f"{speaker}-100-{number:04d}" for number in range(2)]
        chapter = root / "LibriSpeech" / split / speaker / "100"
        for name in names:
            tone(chapter / f"{name}.flac")
        lines = [f"{name} GO DO YOU HEAR NUMBER {number}" for number, name in enumerate(names)]
        (chapter / f"{speaker}-100.trans.txt").write_text("\n".join(lines) + "\n")
        made.kept |= {f"librispeech-{name}" for name in names}
    if defect == "mini_librispeech":
        return made
    (root / "LibriSpeech" / "SPEAKERS.TXT").write_text("; a comment\n84   | F | train-clean-100  | 25.03 | A | B\n")
    _spoil(made, root / "LibriSpeech" / "train-clean-100" / "84" / "100", defect)
    return made


def _spoil(made: Made, chapter: Path, defect: str | None) -> None:
    clip, transcript = chapter / "84-100-0001.flac", chapter / "84-100.trans.txt"
    if defect == "zero_bytes":
        clip.write_bytes(b"")
        made.drop("librispeech-84-100-0001", "empty_audio")
    elif defect == "missing_audio":
        clip.unlink()
        made.drop("librispeech-84-100-0001", "missing_audio")
    elif defect == "no_transcript":
        transcript.unlink()
        for number in range(2):
            made.drop(f"librispeech-84-100-000{number}", "no_text")
    elif defect == "unnamed_clip":
        tone(chapter / "84-100-0002.flac")
        made.dropped["no_text"] = 1
    elif defect == "line_without_words":
        tone(chapter / "84-100-0002.flac")
        transcript.write_text(transcript.read_text() + "84-100-0002\n")
        made.dropped["no_text"] = 1
    elif defect == "line_twice":
        transcript.write_text(transcript.read_text() * 2)
        made.dropped["duplicate_id"] = 2
    elif defect == "not_utf8":
        transcript.write_bytes(b"84-100-0000 CAF\xc9\n84-100-0001 GO\n")
        made.drop("librispeech-84-100-0000", "bad_line")
        made.dropped["no_text"] = 1  # the clip that the line was for
    elif defect == "crlf":
        transcript.write_bytes(transcript.read_bytes().replace(b"\n", b"\r\n"))
    elif defect == "apple_double":
        (chapter / "._84-100-0000.flac").write_bytes(b"\x00\x05\x16\x07")
        (chapter.parent / ".DS_Store").write_bytes(b"\x00")
    elif defect == "truncated_audio":  # found where it is decoded, not here
        clip.write_bytes(clip.read_bytes()[:2000])
