"""The coordinator's side of one agent: its process (or the ssh or srun that leads to it), orders out, reports in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

_PATIENCE_S = 5.0  # of an agent with the end of its ranks


@dataclass(frozen=True)
class Place:
    """A host to train on: how many ranks, and the command that starts `python -m cluster.agent` there.

    `command` is the whole argument list: ("ssh", ..., host, one quoted command line), ("srun", "-N1", "-n1", "-w",
    host, python, "-m", "cluster.agent"), or for this host what `here` says. Whatever it leads to must pass stdin,
    stdout and stderr on as they are. `environment` is what the ranks get beside the environment that the agent finds;
    it goes through the pipe, never onto a command line. `address` is where the other hosts reach this one; of None the
    agent there finds one that leads to the others. `where` is the line of a file that names it.
    """

    name: str
    ranks: int
    command: tuple[str, ...]
    address: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    is_here: bool = False
    where: str = ""


def here(name: str, ranks: int, environment: Mapping[str, str]) -> Place:
    """This host: no ssh, and the ranks of a run on it alone meet on the loopback."""
    return Place(name, ranks, (sys.executable, "-m", "cluster.agent"), "127.0.0.1", environment, is_here=True)


class AgentLink:
    """An agent that was started."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.heard_s = time.monotonic()
        self.is_up = False  # it has reported
        self.address = ""  # by which we reach its host, as far as the agent knows
        self._unread, self._unsent = b"", b""
        output: list[int] = [os.dup(1)] if place.is_here else []
        try:
            self._process = subprocess.Popen(
                [*place.command, *(["--output", str(output[0])] if output else [])],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=output,
                start_new_session=True,  # Ctrl-C is for the coordinator alone
            )  # fmt: skip
        finally:
            for descriptor in output:
                os.close(descriptor)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._orders: IO[bytes] = self._process.stdin
        self.reports: IO[bytes] = self._process.stdout
        os.set_blocking(self._orders.fileno(), False)

    def order(self, do: str, **details: Any) -> None:
        """Sent if there is still an agent, and what a full pipe does not take with the next order. An agent that takes
        none is soon silent as well."""
        self._unsent += json.dumps({"do": do, **details}).encode() + b"\n"
        with suppress(BrokenPipeError, BlockingIOError):
            self._unsent = self._unsent[os.write(self._orders.fileno(), self._unsent) :]

    def read(self) -> list[dict[str, Any]] | None:
        """The reports that have come; None when no more will."""
        piece = os.read(self.reports.fileno(), 1 << 16)
        if not piece:
            return None
        self.heard_s = time.monotonic()
        *lines, self._unread = (self._unread + piece).split(b"\n")
        reports = [report for line in lines if (report := _report(line)) is not None]
        self.is_up = self.is_up or reports != []
        return reports

    def hang_up(self) -> None:
        """The end of its stdin ends an agent with its ranks."""
        with suppress(BrokenPipeError):
            self._orders.close()

    def close(self, *, at_once: bool = False) -> int:
        """Hang up and wait, unless `at_once`. Returns the exit code of the command."""
        self.hang_up()
        try:
            code = self._process.wait(0 if at_once else _PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self.reports.close()
        return code


def _report(line: bytes) -> dict[str, Any] | None:
    """What an agent reports in a line; what a login shell over there says goes to people, not to the coordinator."""
    with suppress(ValueError):
        report = json.loads(line)
        if isinstance(report, dict) and "is" in report:
            return report
    print(line.decode(errors="replace"), file=sys.stderr, flush=True)
    return None
