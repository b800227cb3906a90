"""What ends a rank, told to whoever says it once for all ranks: the agent, or failure.json where there is none."""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster.failure import RankState, first_cause, write_failure
from cluster.heartbeat import is_watched, last_beat, tell_failure
from launcher.errors import code_of, sentence_of

_TRACEBACK_CHARS = 10_000
# How gloo and NCCL say that another rank has gone.
_LOST_CONTACT = (
    "Connection closed by peer", "Connection reset by peer", "Timed out waiting", "remote process exited",
    "Broken pipe",
)  # fmt: skip
_began_s = time.time()


def has_lost_contact(error: BaseException) -> bool:
    """Whether this rank only met the end of another."""
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _LOST_CONTACT)


@contextmanager
def telling(debug: bool) -> Iterator[None]:
    """Under an agent an error is told to it instead of being said here, and the rank ends."""
    try:
        yield
    except Exception as error:
        if not is_watched():
            raise
        code, told = _told(error)
        if debug:
            told["sentence"] = None
        tell_failure(error, consequence=has_lost_contact(error), code=int(code), **told)
        raise SystemExit(code) from None


@contextmanager
def recording(run: Path) -> Iterator[None]:
    """Without an agent the first rank that fails writes failure.json, with what it knows."""
    try:
        yield
    except Exception as error:
        if not is_watched() and not has_lost_contact(error):
            with suppress(OSError):
                _record(run, error)
        raise


def _record(run: Path, error: Exception) -> None:
    path = run / "failure.json"
    if path.exists() and path.stat().st_mtime >= _began_s:
        return  # another rank was first
    code, told = _told(error)
    failure = {"exception": type(error).__name__, "message": str(error), "consequence": False, "code": code, **told}
    rank = RankState(int(os.environ.get("RANK", "0")), socket.gethostname(), last_beat(), failure=failure, ill_s=0.0)
    cause = first_cause([rank])
    if not cause.is_strangers:
        when = datetime.now(UTC).isoformat(timespec="seconds")
        write_failure(run, cause, [rank], time=when, resume="the same command", restarted=False, restarts=0)


def _told(error: Exception) -> tuple[int, dict[str, Any]]:
    code, sentence = code_of(error), sentence_of(error)
    lines = "".join(traceback.format_exception(error))[-_TRACEBACK_CHARS:]
    known = {name: getattr(error, name) for name in ("culprit", "ids") if hasattr(error, name)}
    return code, {"sentence": sentence, "traceback": lines, **known}
