"""DeepSpeed hostfiles: one host and its number of processes per line, checked before anything starts.

DeepSpeed itself reads `slots=8x` as 8 and trains on this machine alone when the file is missing; here both are errors.
What a file costs to read is bounded, and the names in it can stand in a command line and on a terminal.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from pathlib import Path

# What ssh, pdsh and DeepSpeed's --include all take: no leading '-', no ':' or ',' or '@'.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")  # DNS knows no longer ones
_SLOTS = re.compile(r"slots=([1-9][0-9]{0,3})")
_MAX_BYTES = 2**20
_MAX_ERRORS = 20  # that are told
_MAX_SHOWN = 80  # characters of a word that is wrong


@dataclass(frozen=True)
class Host:
    """A host that ssh reaches by `name`, and how many processes (one per GPU) run on it; `where` is FILE:LINE."""

    name: str
    slots: int
    where: str = field(default="", compare=False)


def read_hostfile(path: Path) -> list[Host]:
    """The hosts in the order of the file: the first one is the master.

    Raises ValueError with one line `file:line: what is wrong` per bad line (the first twenty), OSError if the file
    cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(
            f"{path}: larger than {_MAX_BYTES // 2**20} MiB, which no list of hosts is; is it another file?"
        )
    hosts: dict[str, Host] = {}
    seen_on: dict[str, int] = {}
    errors, num_bad = [], 0
    lines = io.StringIO(content.decode("utf-8", "replace"), newline=None)
    for number, line in enumerate(lines, start=1):
        words = line.split("#", maxsplit=1)[0].split()
        if not words:
            continue
        problem = _problem(words)
        if problem is None and words[0] in hosts:
            problem = (
                f"host {words[0]!r} was already named on line {seen_on[words[0]]}; give it one line with all its slots"
            )
        if problem is not None:
            num_bad += 1
            if num_bad <= _MAX_ERRORS:
                errors.append(f"{path}:{number}: {problem}")
            continue
        seen_on[words[0]] = number
        hosts[words[0]] = Host(words[0], int(words[1].removeprefix("slots=")), f"{path}:{number}")
    if errors:
        more = [f"... and {num_bad - len(errors)} more bad lines"] if num_bad > len(errors) else []
        raise ValueError("\n".join(errors + more))
    if not hosts:
        raise ValueError(f"{path}: names no host; write one line per host, such as 'node-1 slots=8'")
    return list(hosts.values())


def _problem(line: list[str]) -> str | None:
    words = [word[:_MAX_SHOWN] for word in line]
    if not _NAME.fullmatch(line[0]):
        return f"{words[0]!r} is not a host name; use letters, digits, '.', '_' and '-', or an alias from ~/.ssh/config"
    if len(words) == 1:
        return f"host {words[0]!r} has no slots; write '{words[0]} slots=8' for 8 processes"
    if not _SLOTS.fullmatch(line[1]):
        return f"{words[1]!r}: expected slots=N with N from 1 to 9999"
    if len(words) > 2:
        return f"{words[2]!r} is not understood; a line is '<host> slots=<N>'"
    return None
