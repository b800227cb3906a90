"""What something costs at most: it runs in a forked process whose memory and time the kernel limits."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_PAGE_BYTES = resource.getpagesize()


@dataclass(frozen=True)
class Ended:
    """How it ended: the name of the exception or None, what it said or returned, and what it took."""

    error: str | None
    said: str
    seconds: float
    megabytes: float  # by which the process has grown at most


def bounded(action: Callable[[], object], *, seconds: float, megabytes: int) -> Ended:
    """Run `action` with so much more memory than this process has and so many seconds of computing, five times as many
    in all. Fails when it needs more: a MemoryError, or a killed process."""
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        _run(action, seconds, megabytes, sending)
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code == 0 and answer, f"ended with {code}: more than {seconds} s, or it crashed"
    ended: Ended = pickle.loads(answer)  # noqa: S301, our own child's
    assert ended.error != "MemoryError", f"took more than {megabytes} MB"
    return ended


def _run(action: Callable[[], object], seconds: float, megabytes: int, sending: int) -> None:
    code = 1
    try:
        for timer, alarm, limit in (
            (signal.ITIMER_PROF, signal.SIGPROF, seconds),
            (signal.ITIMER_REAL, signal.SIGALRM, 5 * seconds),
        ):
            signal.signal(alarm, signal.SIG_DFL)
            signal.setitimer(timer, limit)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE_BYTES
        limit_bytes = size + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
        before_kb, began_s = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        error, said = None, ""
        try:
            said = repr(action())
        except BaseException as raised:
            error, said = type(raised).__name__, str(raised)
        took_s = time.monotonic() - began_s
        grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
        answer = pickle.dumps(Ended(error, said[:200_000], took_s, grown_kb / 1024))
        while answer:
            answer = answer[os.write(sending, answer) :]
        code = 0
    finally:
        sys.stdout.flush()
        os._exit(code)
