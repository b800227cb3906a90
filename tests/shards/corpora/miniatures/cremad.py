"""CREMA-D: `AudioWAV/1001_DFA_ANG_XX.wav`, and tables that nobody needs."""

from __future__ import annotations

from pathlib import Path

from tests.shards.corpora.miniatures import Made, tone

DEFECTS = ("lfs_pointers", "one_x", "both_names", "other_emotions", "foreign_files", "the_folder_itself", "silent")
_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0f\nsize 73646\n"
_NAMES = ("1001_DFA_ANG_XX", "1001_IEO_HAP_HI", "1063_TSI_SAD_LO", "1064_ITS_NEU_XX", "1091_WSI_SAD_MD")


def make(root: Path, defect: str | None = None) -> Made:
    """Four actors of all splits."""
    folder = root / "AudioWAV"
    for name in _NAMES:
        tone(folder / f"{name}.wav")
    (root / "VideoDemographics.csv").write_text("ActorID,Age,Sex,Race,Ethnicity\n1001,51,Male,Caucasian,Not Hispanic\n")
    made = Made(root, {f"cremad-{name}" for name in _NAMES})
    if defect == "lfs_pointers":
        for name in ("1002_DFA_ANG_XX", "1003_DFA_ANG_XX"):
            (folder / f"{name}.wav").write_text(_POINTER)
        made.dropped["lfs_pointer"] = 2
    elif defect == "one_x":
        tone(folder / "1040_ITH_SAD_X.wav")
        made.kept.add("cremad-1040_ITH_SAD_XX")
    elif defect == "both_names":
        tone(folder / "1001_DFA_ANG_X.wav")
        made.dropped["duplicate_id"] = 1
    elif defect == "other_emotions":
        for emotion in ("FEA", "DIS"):
            tone(folder / f"1001_DFA_{emotion}_XX.wav")
        made.dropped["unknown_emotion"] = 2
    elif defect == "foreign_files":
        tone(folder / "1001_ABC_ANG_XX.wav")  # there is no such sentence
        made.dropped["unreadable"] = 1
    elif defect == "the_folder_itself":
        made.root = folder
    elif defect == "silent":
        tone(folder / "1076_MTI_SAD_XX.wav", loudness=0.0)  # decoding finds that
        made.kept.add("cremad-1076_MTI_SAD_XX")
    return made
