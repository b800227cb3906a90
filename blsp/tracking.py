"""What a run tells: every logged scalar as a line of `log.jsonl` and in TensorBoard. Rank 0 only.

A thread writes, so a disk that hangs does not hold up training. Lines that a disk does not take, because it is full or
its folder is gone, are kept and written with a later one. TensorBoard's files may fail by themselves.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from cluster.files import write_atomically
from cluster.json_files import parse_object

_MOST_WAITING = 1000
_MAX_S = 1e11  # of seconds that a log tells of; another file may lie in its place
_PATIENCE_S = 20.0  # for what is still to be written at the end

Write = Callable[[SummaryWriter], None]


class _Lines:
    """A file that lines are added to. Those that could not be written are kept, and written before what comes."""

    def __init__(self, path: Path) -> None:
        self._path, self._waiting = path, b""
        self._file = path.open("ab", buffering=0)

    def add(self, line: dict[str, Any]) -> None:
        """Nothing is written yet."""
        self._waiting += json.dumps(line).encode() + b"\n"

    def write(self) -> None:
        """Raises OSError when that fails; no line gets lost or torn by it."""
        if os.fstat(self._file.fileno()).st_nlink == 0:  # its folder was removed; in one that was moved it lives on
            anew = self._path.open("ab", buffering=0)  # which may fail, and is tried again then
            self._file.close()
            self._file = anew
        while self._waiting:
            self._waiting = self._waiting[self._file.write(self._waiting) :]


class Tracker:
    """Opens a run's log at `start_step`: what a broken-off run logged after its last checkpoint is dropped."""

    def __init__(
        self,
        run: Path,
        start_step: int,
        warn: Callable[[str], object] = print,
        still_owned: Callable[[], object] = lambda: None,
        accepted: Sequence[str] = (),
    ) -> None:
        """`accepted` changes of recipe and data are noted in `launches.jsonl`. `warn` is told at most one sentence of
        each kind. Raises nothing: a run goes on without a log. Nothing is written when `still_owned` raises, and
        nothing more unless it is an OSError."""
        self._still_owned = still_owned
        self._run, self._warn, self._said = run, warn, set[str]()
        self._waiting: queue.Queue[tuple[dict[str, Any] | None, Write | None] | None] = queue.Queue(_MOST_WAITING)
        self._first_start_s, self._useful_s = time.time(), 0.0
        self._thread: threading.Thread | None = None
        self._writer: SummaryWriter | None = None
        self._purge_step: int | None = start_step + 1
        try:
            self._first_start_s = _note_launch(run / "launches.jsonl", start_step, accepted)
            lines, self._useful_s = _open_log(run / "log.jsonl", start_step)
        except (OSError, ValueError) as error:
            self._complain(f"{run}: the log cannot be written ({error}); training goes on without it")
            return
        self._thread = threading.Thread(target=self._write_all, args=(lines,), daemon=True, name="log")
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

    def _write_all(self, lines: _Lines) -> None:
        try:
            while (item := self._waiting.get()) is not None:
                line, write = item
                if line is not None:
                    lines.add(line)
                if self._is_written(lines):
                    self._tell_board(line, write)
            self._is_written(lines)
            if self._writer is not None:
                self._writer.close()
        except Exception as error:  # whatever it is, the training is worth more
            self._complain(f"{self._run}: the log cannot be written ({error}); training goes on without it")

    def _is_written(self, lines: _Lines) -> bool:
        try:
            self._still_owned()
            lines.write()
        except OSError as error:
            self._complain(f"{self._run}: log.jsonl cannot be written ({error}); its lines are kept and tried again")
            return False
        return True

    def _tell_board(self, line: dict[str, Any] | None, write: Write | None) -> None:
        try:
            if self._writer is None:
                self._writer = SummaryWriter(self._run / "tensorboard", purge_step=self._purge_step)
                self._purge_step = None
            for name, value in (line or {}).items():
                if line is not None and name != "step":
                    self._writer.add_scalar(name, value, line["step"])
            if write is not None:
                write(self._writer)
        except Exception as error:  # its own thread says it late, and of any kind
            self._writer = None
            self._complain(f"{self._run}: TensorBoard's files cannot be written ({error}); log.jsonl has the figures")

    def _complain(self, sentence: str) -> None:
        what = sentence.partition(" (")[0]
        if what not in self._said:
            self._said.add(what)
            self._warn(sentence)


def _open_log(path: Path, start_step: int) -> tuple[_Lines, float]:
    """The log without what came after `start_step`, open for more, and the seconds of the steps that it tells of."""
    kept = [record for record in read_log(path) if record["step"] <= start_step]
    content = "".join(json.dumps(record) + "\n" for record in kept).encode()
    if not path.exists() or path.read_bytes() != content:  # a disk that is full takes no copy
        write_atomically(path, content)
    return _Lines(path), sum(_number(record, "pace/steps_s", 0.0) for record in kept)


def _note_launch(path: Path, start_step: int, accepted: Sequence[str]) -> float:
    """Add this launch to the run's list of them; when the first was, in seconds since 1970."""
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier = read_log(path)
    now: dict[str, Any] = {"time_s": time.time(), "step": start_step}
    if accepted:
        now["accepted"] = list(accepted)
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
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        with suppress(ValueError):
            record = parse_object(line)
            if type(record.get("step")) is int:
                records.append(record)
    return records
