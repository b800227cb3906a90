"""DeepSpeed hostfiles: one host and its number of processes per line, checked before anything starts.

DeepSpeed itself reads `slots=8x` as 8 and trains on this machine alone when the file is missing; here both are errors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# What ssh, pdsh and DeepSpeed's --include all take: no leading '-', no ':' or ',' or '@'.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SLOTS = re.compile(r"slots=([1-9][0-9]{0,3})")


@dataclass(frozen=True)
class Host:
    """A host that ssh reaches by `name`, and how many processes (one per GPU) run on it."""

    name: str
    slots: int


def read_hostfile(path: Path) -> list[Host]:
    """The hosts in the order of the file: the first one is the master.

    Raises ValueError with one line `file:line: what is wrong` per bad line, OSError if the file cannot be read.
    """
    hosts: dict[str, Host] = {}
    seen_on: dict[str, int] = {}
    errors = []
    for number, line in enumerate(path.read_text("utf-8", errors="replace").split("\n"), start=1):
        words = line.split("#", maxsplit=1)[0].split()
        if not words:
            continue
        problem = _problem(words)
        if problem is None and words[0] in hosts:
            problem = (
                f"host {words[0]!r} was already named on line {seen_on[words[0]]}; give it one line with all its slots"
            )
        if problem is not None:
            errors.append(f"{path}:{number}: {problem}")
            continue
        seen_on[words[0]] = number
        hosts[words[0]] = Host(words[0], int(words[1].removeprefix("slots=")))
    if errors:
        raise ValueError("\n".join(errors))
    if not hosts:
        raise ValueError(f"{path}: names no host; write one line per host, such as 'node-1 slots=8'")
    return list(hosts.values())


def _problem(words: list[str]) -> str | None:
    if not _NAME.fullmatch(words[0]):
        return f"{words[0]!r} is not a host name; use letters, digits, '.', '_' and '-', or an alias from ~/.ssh/config"
    if len(words) == 1:
        return f"host {words[0]!r} has no slots; write '{words[0]} slots=8' for 8 processes"
    if not _SLOTS.fullmatch(words[1]):
        return f"{words[1]!r}: expected slots=N with N from 1 to 9999"
    if len(words) > 2:
        return f"{words[2]!r} is not understood; a line is '<host> slots=<N>'"
    return None
