"""Common Voice: `cv-corpus-17.0-2024-03-15/en/{train,dev,test}.tsv` beside `clips`."""

from __future__ import annotations

from pathlib import Path

from tests.shards.corpora.miniatures import Made, tone

DEFECTS = (
    "header_of_v1", "header_of_v5", "header_of_v13", "unbalanced_quote", "zero_bytes", "missing_audio", "short_row",
    "empty_sentence", "empty_path", "line_twice", "crlf", "not_utf8",
)  # fmt: skip
_V1 = "client_id path sentence up_votes down_votes age gender accent"
_V5 = f"{_V1} locale segment"
_V13 = "client_id path sentence up_votes down_votes age gender accents variant locale segment"
_V17 = (
    "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents variant locale segment"
)


def make(root: Path, defect: str | None = None) -> Made:
    """Two clips by one speaker in each split."""
    columns = {"header_of_v1": _V1, "header_of_v5": _V5, "header_of_v13": _V13}.get(defect or "", _V17).split()
    folder = root / "cv-corpus-17.0-2024-03-15" / "en"
    made = Made(root, set())
    for place, split in enumerate(("train", "dev", "test")):
        table = ["\t".join(columns)]
        for number in range(place * 2, place * 2 + 2):
            name = f"common_voice_en_{number}"
            tone(folder / "clips" / f"{name}.mp3")
            path = name if defect == "header_of_v1" else f"{name}.mp3"
            row = {"client_id": f"{split}{'0' * 120}", "path": path, "sentence": f"Number {number}.", "locale": "en"}
            table.append("\t".join(row.get(column, "") for column in columns))
            made.kept.add(f"commonvoice-{name}")
        (folder / f"{split}.tsv").write_text("\n".join(table) + "\n", encoding="utf-8")
    (folder / "validated.tsv").write_text((folder / "train.tsv").read_text())
    (folder / "clip_durations.tsv").write_text("clip\tduration[ms]\ncommon_voice_en_0.mp3\t1000\n")
    _spoil(made, folder, defect)
    return made


def _spoil(made: Made, folder: Path, defect: str | None) -> None:
    table, clip = folder / "train.tsv", folder / "clips" / "common_voice_en_1.mp3"
    text, lost = table.read_text(), "commonvoice-common_voice_en_1"
    if defect == "unbalanced_quote":
        table.write_text(text.replace("Number 0.", '"Number 0.'))
    elif defect == "zero_bytes":
        clip.write_bytes(b"")
        made.drop(lost, "empty_audio")
    elif defect == "missing_audio":
        clip.unlink()
        made.drop(lost, "missing_audio")
    elif defect == "short_row":
        table.write_text(text + "client\tcommon_voice_en_0.mp3\tand it\n")
        made.dropped["bad_line"] = 1
    elif defect == "empty_sentence":
        table.write_text(text.replace("Number 1.", ""))
        made.drop(lost, "no_text")
    elif defect == "empty_path":
        table.write_text(text.replace("common_voice_en_1.mp3", ""))
        made.drop(lost, "bad_line")
    elif defect == "line_twice":
        table.write_text(text + text.splitlines()[1] + "\n")
        made.dropped["duplicate_id"] = 1
    elif defect == "crlf":
        table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes().replace(b"\n", b"\r\n"))
    elif defect == "not_utf8":
        table.write_bytes(text.encode().replace(b"Number 1.", b"Caf\xe9."))
        made.drop(lost, "bad_line")
