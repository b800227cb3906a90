"""Where a rank is in its work, told to the agent that started it: a line of JSON per phase, into a pipe.

The environment names the pipe. Without it (DeepSpeed's own launcher, a test in process) nothing is sent, and the calls
cost next to nothing. A full pipe loses a beat rather than hold the rank up; the next one says all that matters.
"""

from __future__ import annotations

import json
import os
import select
from contextlib import suppress
from typing import Any, Literal, get_args

FD = "BLSP_BEAT_FD"
Phase = Literal[
    "starting", "rendezvous", "loading",
    "data", "forward", "backward", "update", "validation", "checkpoint", "export",
]  # fmt: skip
PHASES: tuple[str, ...] = get_args(Phase)  # in the order of a run, and of a step

_LINE_BYTES = select.PIPE_BUF  # a write of up to so many is whole or not at all, whichever thread it comes from
_MESSAGE_CHARS = 3000
_FAILURE_PATIENCE_S = 1.0

_last: dict[str, Any] = {"phase": "starting", "step": 0}


def beat(phase: Phase, step: int | None = None, **told: Any) -> None:
    """This rank begins `phase`, or is still in it and gets on. `step` counts from 1: the step in work, or the one just
    done for validation and checkpoint; None means that of the beat before.

    `told` goes along: `micro_batch` (from 0, in forward and backward), `ids` of the clips in work, or what else a
    failure should tell of. It stays true until the next step.
    """
    if step is None or step == _last["step"]:
        _last.pop("micro_batch", None)
    else:
        _last.clear()
        _last["step"] = step
    told = {"phase": phase, "step": _last["step"], **told}
    line = _short(told)
    _last.update(told)
    _send(line)


def last_beat() -> dict[str, Any]:
    """Phase and step of this rank's last beat, and what was told in that step."""
    return dict(_last)


def is_watched() -> bool:
    """Whether an agent listens."""
    return FD in os.environ


def tell_failure(error: BaseException, *, consequence: bool, **told: Any) -> None:
    """This rank ends with `error`; a `consequence` is what it got because another rank ended before. `told` goes along,
    and what was told of the step in work; `culprit` in it is the rank that it is due to, `ids` its clips."""
    message = str(error)[:_MESSAGE_CHARS]
    failure = {"exception": type(error).__name__, "message": message, "consequence": consequence}
    _send(json.dumps({"failure": {**_last, **failure, **told}}).encode() + b"\n", _FAILURE_PATIENCE_S)


def _send(line: bytes, patience_s: float = 0) -> None:
    if not is_watched():
        return
    descriptor = int(os.environ[FD])
    # No reader process of this rank is to hold the pipe, nor may the rank end when the agent has gone.
    with suppress(OSError):
        os.set_inheritable(descriptor, False)
        os.set_blocking(descriptor, False)
        while line:
            if patience_s:
                select.select([], [descriptor], [], patience_s)
            line = line[os.write(descriptor, line) :]


def _short(told: dict[str, Any]) -> bytes:
    """A line that is written whole; for its sake of many ids only the first stay in `told`."""
    while len(line := json.dumps({"beat": told}).encode() + b"\n") > _LINE_BYTES:
        longest = max(told, key=lambda name: len(json.dumps(told[name])))
        told[longest] = told[longest][: len(told[longest]) // 2]
    return line
