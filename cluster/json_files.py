"""JSON that anybody may have written: an object of bounded size, or a sentence about what is there instead.

Python's own reader takes files of any size, ends on a thousand open brackets with a RecursionError, and whoever prints
or compares what is nested almost as deep ends with one later.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

_MAX_BYTES = 64 * 2**20
_MAX_DEPTH = 64


def read_object(path: Path, max_bytes: int = _MAX_BYTES) -> dict[str, Any]:
    """The JSON object in a file.

    Raises ValueError, naming the file, when it is larger, holds anything else or is nested deeper than 64; OSError when
    it cannot be read.
    """
    with open(path, "rb", opener=_open) as file:
        data = file.read(max_bytes + 1)
    try:
        if len(data) > max_bytes:
            raise ValueError(f"larger than {max_bytes:,} bytes")
        return parse_object(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object that `data` is, in UTF-8. Raises ValueError in a few words for anything else."""
    try:
        value = json.loads(data.decode())
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({str(error)[:200]})") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    _refuse_deep(value)
    return value


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe in the file's place must not hang us


def _refuse_deep(value: Any) -> None:
    level = [value]
    for _ in range(_MAX_DEPTH):
        inside = (item.values() if isinstance(item, dict) else item for item in level)
        level = [item for items in inside for item in items if isinstance(item, dict | list)]
        if not level:
            return
    raise ValueError(f"nested deeper than {_MAX_DEPTH}")
