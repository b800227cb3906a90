"""The answers that an unfinished evaluation has so far, a file for each chunk: the same command goes on from them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from cluster.files import write_atomically
from cluster.json_files import read_object

GOES_ON = "the same command goes on from the answers that it has"
_FOLDER = "answers"


class KeptAnswers:
    """Those in the folder of a result, by the key of a chunk."""

    def __init__(self, out: Path) -> None:
        self._folder = out / _FOLDER

    def __len__(self) -> int:
        return sum(1 for _ in self._folder.glob("*.json"))

    def get(self, key: str, number: int) -> list[str] | None:
        """`number` answers, or None where there are not that many that can be read."""
        try:
            answers = read_object(self._folder / f"{key}.json").get("answers")
        except (FileNotFoundError, ValueError):  # a damaged file is as good as none
            return None
        if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
            return None
        return answers if len(answers) == number else None

    def put(self, key: str, answers: Sequence[str]) -> None:
        """Raises OSError, as for a full disk."""
        write_atomically(self._folder / f"{key}.json", json.dumps({"answers": answers}, ensure_ascii=False).encode())

    def remove(self) -> None:
        """All of them, once there is a result."""
        shutil.rmtree(self._folder, ignore_errors=True)
