"""CaFE: `CaFE_48k/Colère/Fort/01-C-2-1.wav`, at 48 kHz with 24 bits."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

from tests.shards.corpora.miniatures import Made, tone

DEFECTS = ("nfd_folders", "aiff_too", "aiff_only", "other_emotions", "path_is_not_utf8", "foreign_file")
_FOLDERS = {
    "02-N-1-1": "Neutre",
    "01-C-2-1": "Colère/Fort",
    "03-J-1-2": "Joie/Faible",
    "11-T-2-6": "Tristesse/Fort",
    "12-S-1-3": "Surprise/Faible",
}


def make(root: Path, defect: str | None = None) -> Made:
    """Five actors of all splits, all five emotions."""
    if defect != "aiff_only":
        _write(root / "CaFE_48k", ".wav", 48000, nfd if defect == "nfd_folders" else nfc)
    if defect in ("aiff_only", "aiff_too"):
        _write(root / "CaFE_192k", ".aiff", 192000, nfc)
    made = Made(root, {f"cafe-{name}" for name in _FOLDERS})
    if defect == "aiff_too":
        made.dropped["duplicate_id"] = len(_FOLDERS)
    elif defect == "other_emotions":
        tone(root / "CaFE_48k" / "Peur" / "Fort" / "01-P-2-1.wav")
        tone(root / "CaFE_48k" / nfd("Dégoût") / "Fort" / "01-D-2-1.wav")
        made.dropped["unknown_emotion"] = 2
    elif defect == "path_is_not_utf8":
        folder = root / "CaFE_48k" / os.fsdecode("Colère".encode("cp850"))
        folder.mkdir()
        (root / "CaFE_48k" / "Neutre" / "02-N-1-1.wav").rename(folder / "02-C-2-1.wav")
        made.kept.remove("cafe-02-N-1-1")
        made.dropped["unreadable"] = 1
    elif defect == "foreign_file":
        tone(root / "CaFE_48k" / "Neutre" / "02-N-1-7.wav")  # there is no such sentence
        made.dropped["unreadable"] = 1
    return made


def nfc(name: str) -> str:
    """As on Linux and Windows."""
    return unicodedata.normalize("NFC", name)


def nfd(name: str) -> str:
    """As archives made on macOS spell it: letter and accent apart."""
    return unicodedata.normalize("NFD", name)


def _write(folder: Path, ending: str, rate: int, form: Callable[[str], str]) -> None:
    for name, place in _FOLDERS.items():
        tone(folder / form(place) / f"{name}{ending}", seconds=0.2, rate=rate, subtype="PCM_24")
