"""What an evaluation leaves on disk: `result.json` (measures per system) and `rows.jsonl` (every clip's answers)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blsp.evaluate.scoring import Row
from cluster.files import sync_folder, write_atomically
from cluster.json_files import read_object

FORMAT = 1


def write_result(folder: Path, result: dict[str, Any], rows: Sequence[Row]) -> None:
    """Both files, each whole or not at all. While `result.json` is there, the rows beside it are its own.

    An earlier result is replaced only when the new one is on the disk.
    """
    lines = "".join(json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rows)
    contents = {"rows.jsonl": lines, "result.json": f"{json.dumps(result, ensure_ascii=False, indent=1)}\n"}
    for name, content in contents.items():
        write_atomically(folder / f"new-{name}", content.encode())
    (folder / "result.json").unlink(missing_ok=True)
    for name in contents:
        (folder / f"new-{name}").replace(folder / name)
    sync_folder(folder)


def read_result(folder: Path) -> dict[str, Any]:
    """Raises ValueError when the folder holds no finished evaluation, or one of another format."""
    path = folder / "result.json"
    if not path.exists():
        raise ValueError(f"{folder} holds no result.json, so no evaluation has finished there; run `blsp eval` first")
    result = read_object(path)
    if result.get("format") != FORMAT:
        raise ValueError(f"{path} has format {result.get('format')!r}, this version reads {FORMAT}; evaluate again")
    return result


def read_rows(folder: Path) -> list[Row]:
    """The rows behind `read_result(folder)`, system after system."""
    with (folder / "rows.jsonl").open(encoding="utf-8") as lines:
        return [Row(**json.loads(line)) for line in lines]
