"""The log of a run as it grows: the place where other trackers are hooked in."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.json_files import parse_object

_LOOKS_EVERY_S = 1.0


def follow(run: Path | str, idle_s: float | None = None) -> Iterator[dict[str, Any]]:
    """Every line of a run's log.jsonl, {"step": 20, "loss": 1.3, ...}, from the first on and then as they come; ends
    when none has come for `idle_s` seconds, never without.

    Run it beside the training, in a process of its own: nothing that happens here can hold up a step. After a resume
    the log is cut back; steps that were told of are not told of again. A line that is none is left out.
    """
    path, told, place, last_s = Path(run) / "log.jsonl", 0, 0, time.monotonic()
    while idle_s is None or time.monotonic() - last_s < idle_s:
        size = path.stat().st_size if path.exists() else 0
        if size < place:
            place = 0
        if size > place:
            with path.open("rb") as file:
                file.seek(place)
                lines = file.readlines()
            again = told if place == 0 else -1
            for line in lines:
                if not line.endswith(b"\n"):  # half written
                    break
                place += len(line)
                record = _record(line)
                if record is not None and record["step"] > again:
                    yield record
                    told, last_s = max(told, record["step"]), time.monotonic()
        time.sleep(_LOOKS_EVERY_S if idle_s is None else min(_LOOKS_EVERY_S, idle_s / 4))


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = parse_object(line)
    except ValueError:
        return None
    return record if type(record.get("step")) is int else None
