"""What an evaluation leaves on disk: `result.json` (measures per system) and `rows.jsonl` (every clip's answers)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blsp.evaluate.scoring import Row
from cluster.files import write_atomically

FORMAT = 1


def write_result(folder: Path, result: dict[str, Any], rows: Sequence[Row]) -> None:
    """Both files, each whole or not at all. While `result.json` is there, the rows beside it are its own."""
    (folder / "result.json").unlink(missing_ok=True)
    lines = "".join(json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rows)
    write_atomically(folder / "rows.jsonl", lines.encode())
    write_atomically(folder / "result.json", f"{json.dumps(result, ensure_ascii=False, indent=1)}\n".encode())


def read_result(folder: Path) -> dict[str, Any]:
    """Raises ValueError when the folder holds no finished evaluation, or one of another format."""
    path = folder / "result.json"
    if not path.exists():
        raise ValueError(f"{folder} holds no result.json, so no evaluation has finished there; run `blsp eval` first")
    result: dict[str, Any] = json.loads(path.read_text("utf-8"))
    if result.get("format") != FORMAT:
        raise ValueError(f"{path} has format {result.get('format')!r}, this version reads {FORMAT}; evaluate again")
    return result


def read_rows(folder: Path) -> list[Row]:
    """The rows behind `read_result(folder)`, system after system."""
    with (folder / "rows.jsonl").open(encoding="utf-8") as lines:
        return [Row(**json.loads(line)) for line in lines]
