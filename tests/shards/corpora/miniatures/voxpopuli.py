"""VoxPopuli: cut into a file per utterance, or whole sessions with a table of spans."""

from __future__ import annotations

import gzip
from pathlib import Path

from tests.shards.corpora.miniatures import Made, tone

DEFECTS = (
    "sessions", "sessions_own_channel", "sessions_unpacked_table", "sessions_of_a_language_that_is_cut",
    "sessions_invalid", "sessions_bad_time", "sessions_backwards", "sessions_open_quote", "hub_archives",
    "missing_audio", "no_raw_text", "short_row", "nobody",
)  # fmt: skip
_COLUMNS = (
    "id_|paragraph_id|session_id|speaker_id|original_text|normed_text|decoded|start_time|end_time|vad|split|gender"
)
_SESSION = "20090112-0900-PLENARY-3"


def make(root: Path, defect: str | None = None) -> Made:
    """One utterance in each split, cut or (where the defect is of sessions) not."""
    names = {split: f"en_2009011{place}-17:07:23_2" for place, split in enumerate(("train", "dev", "test"))}
    made = Made(root, {f"voxpopuli-{_SESSION}-{name}" for name in names.values()})
    if (defect or "").startswith("sessions") and defect != "sessions_of_a_language_that_is_cut":
        _sessions(root, names, defect, made)
        return made
    folder = root / ("data" if defect == "hub_archives" else "transcribed_data") / "en"
    for split, name in names.items():
        row = [f"{_SESSION}-{name}", 'He said "yes.', "he said yes", f"{split}1", split, "female"]
        place, ending = (f"{split}_part_0", "wav") if defect == "hub_archives" else ("2009", "ogg")
        clip = tone(folder / place / f"{_SESSION}-{name}.{ending}")
        if split == "train":
            row = _spoiled(row, clip, defect, made)
        header = ["id", "raw_text", "normalized_text", "speaker_id", "split", "gender"]
        (folder / f"asr_{split}.tsv").write_text("\t".join(header) + "\n" + "\t".join(row) + "\n", encoding="utf-8")
    if defect == "sessions_of_a_language_that_is_cut":
        with gzip.open(folder / "asr_en.tsv.gz", "wt", encoding="utf-8") as file:
            file.write(f"{_COLUMNS}\n{'|' * 11}\n")
    return made


def _spoiled(row: list[str], clip: Path, defect: str | None, made: Made) -> list[str]:
    lost = f"voxpopuli-{row[0]}"
    if defect == "missing_audio":
        clip.unlink()
        made.drop(lost, "missing_audio")
    elif defect == "no_raw_text":
        row[1] = ""
    elif defect == "short_row":
        made.drop(lost, "bad_line")
        return row[:-1]
    elif defect == "nobody":
        row[3] = "None"
    return row


def _sessions(root: Path, names: dict[str, str], defect: str | None, made: Made) -> None:
    channel = "en" if defect == "sessions_own_channel" else "original"
    tone(root / "raw_audios" / channel / "2009" / f"{_SESSION}_{channel}.ogg", seconds=3.5)
    rows = [
        [
            name,
            "7",
            _SESSION,
            f"{split}1",
            "Thank you.",
            "thank you",
            "",
            f"{place}.5",
            f"{place + 1}.25",
            "[]",
            split,
            "",
        ]
        for place, (split, name) in enumerate(names.items())
    ]
    lost = f"voxpopuli-{_SESSION}-{names['train']}"
    if defect == "sessions_invalid":
        rows[0][10] = "invalid"
        made.drop(lost, "weak_label")
    elif defect == "sessions_bad_time":
        rows[0][7] = "noon"
        made.drop(lost, "bad_line")
    elif defect == "sessions_backwards":
        rows[0][7:9] = "2.5", "2.5"
        made.drop(lost, "bad_line")
    elif defect == "sessions_open_quote":
        rows[0][4] = '"Thank you.'
        made.drop(lost, "bad_line")
    text = "\n".join([_COLUMNS, *("|".join(row) for row in rows)]) + "\n"
    if defect == "sessions_unpacked_table":
        (root / "asr_en.tsv").write_text(text, encoding="utf-8")
    else:
        with gzip.open(root / "asr_en.tsv.gz", "wt", encoding="utf-8") as file:
            file.write(text)
