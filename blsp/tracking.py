"""What a run tells: every logged scalar as a line of `log.jsonl` and in TensorBoard. Rank 0 only.

A thread writes, so a disk that hangs does not hold up training; one that fails, or is full, ends the log with a warning
and not the training.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from torch.utils.tensorboard import SummaryWriter

from cluster.files import write_atomically
from cluster.json_files import parse_object

_MOST_WAITING = 1000
_MAX_S = 1e11  # of seconds that a log tells of; another file may lie in its place
_PATIENCE_S = 20.0  # for what is still to be written at the end

Write = Callable[[SummaryWriter], None]


class Tracker:
    """Opens a run's log at `start_step`: what a broken-off run logged after its last checkpoint is dropped."""

    def __init__(
        self,
        run: Path,
        start_step: int,
        warn: Callable[[str], object] = print,
        still_owned: Callable[[], object] = lambda: None,
    ) -> None:
        """`warn` is told at most one sentence. Raises nothing: a run goes on without a log. Nothing is written once
        `still_owned` raises."""
        self._still_owned = still_owned
        self._run, self._warn, self._warned = run, warn, False
        self._waiting: queue.Queue[tuple[dict[str, Any] | None, Write | None] | None] = queue.Queue(_MOST_WAITING)
        self._first_start_s, self._useful_s = time.time(), 0.0
        self._thread: threading.Thread | None = None
        try:
            self._first_start_s = _note_launch(run / "launches.jsonl", start_step)
            file, self._useful_s = _open_log(run / "log.jsonl", start_step)
            writer = SummaryWriter(run / "tensorboard", purge_step=start_step + 1)
        except (OSError, ValueError) as error:
            self._give_up(error)
            return
        self._thread = threading.Thread(target=self._write_all, args=(file, writer), daemon=True, name="log")
        self._thread.start()

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record the scalars of a step, counted from 1. Never waits."""
        line = {"step": step, **scalars}
        if "pace/steps_s" in line:
            self._useful_s += line["pace/steps_s"]
            line["pace/goodput"] = self._useful_s / max(1e-9, time.time() - self._first_start_s)
        self._put((line, None))

    def show(self, write: Write) -> None:
        """Let `write` add pictures, sound or text to TensorBoard. Never waits."""
        self._put((None, write))

    def close(self) -> None:
        """Write out what is waiting; a disk that hangs is not waited for long."""
        if self._thread is not None:
            self._put(None)
            self._thread.join(_PATIENCE_S)

    def _put(self, item: tuple[dict[str, Any] | None, Write | None] | None) -> None:
        if self._thread is None or not self._thread.is_alive():
            return
        try:
            self._waiting.put_nowait(item)
        except queue.Full:
            self._complain(f"{self._run}: the log's disk does not keep up, and lines of the log get lost")

    def _write_all(self, file: TextIO, writer: SummaryWriter) -> None:
        try:
            while (item := self._waiting.get()) is not None:
                line, write = item
                self._still_owned()
                if line is not None:
                    file.write(json.dumps(line) + "\n")
                    for name, value in line.items():
                        if name != "step":
                            writer.add_scalar(name, value, line["step"])
                if write is not None:
                    write(writer)
            file.close()
            writer.close()
        except Exception as error:  # whatever it is, the training is worth more
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._complain(f"{self._run}: the log cannot be written ({error}); training goes on without it")

    def _complain(self, sentence: str) -> None:
        if not self._warned:
            self._warned = True
            self._warn(sentence)


def _open_log(path: Path, start_step: int) -> tuple[TextIO, float]:
    """The log without what came after `start_step`, open for more, and the seconds of the steps that it tells of."""
    kept = [record for record in read_log(path) if record["step"] <= start_step]
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept).encode())
    return path.open("a", buffering=1), sum(_number(record, "pace/steps_s", 0.0) for record in kept)


def _note_launch(path: Path, start_step: int) -> float:
    """Add this launch to the run's list of them; when the first was, in seconds since 1970."""
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier = read_log(path)
    now = {"time_s": time.time(), "step": start_step}
    torn = path.exists() and not path.read_bytes().endswith(b"\n")
    with path.open("a") as file:
        file.write("\n" * torn + json.dumps(now) + "\n")
    return min(_number(launch, "time_s", now["time_s"]) for launch in [*earlier, now])


def _number(record: dict[str, Any], name: str, otherwise: float) -> float:
    value = record.get(name)
    return float(value) if isinstance(value, int | float) and abs(value) < _MAX_S else otherwise


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of `log.jsonl` or `launches.jsonl`; without those that a killed run left half written, or that two runs
    wrote into each other. [] when there is no such file."""
    records = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with suppress(ValueError):
            record = parse_object(line)
            if type(record.get("step")) is int:
                records.append(record)
    return records
