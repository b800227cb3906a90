"""What ends a rank, told to whoever says it once for all ranks: the agent, or failure.json where there is none."""

from __future__ import annotations

import errno
import os
import socket
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster.exit_codes import ExitCode
from cluster.failure import RankState, first_cause, write_failure
from cluster.heartbeat import is_watched, last_beat, tell_failure
from launcher.errors import code_of, sentence_of

_TRACEBACK_CHARS = 10_000
_OURS = ("blsp", "cluster", "launcher", "shards")
# How gloo, NCCL and torch's store say that another rank has gone.
_LOST_CONTACT = (
    "Connection closed by peer", "Connection reset by peer", "Timed out waiting", "remote process exited",
    "Broken pipe", "Connection was likely closed", "Connection refused", "Socket closed", "communicator was aborted",
)  # fmt: skip


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
        if _may_pass(error):
            code, told["sentence"] = ExitCode.REFUSED, None
        if debug:
            told["sentence"] = None
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE  # by somebody else
        tell_failure(error, consequence=taken or has_lost_contact(error), code=int(code), **told)
        raise SystemExit(code) from None


def _may_pass(error: Exception) -> bool:
    """Whether a ValueError is a library's, which says little of the input: of a class that is not ours, or raised in
    code that is not ours in a step. Another try may go well, and the coordinator counts them."""
    if type(error) is not ValueError:
        return isinstance(error, ValueError) and not _is_ours(type(error).__module__)
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return last_beat()["step"] > 0 and not _is_ours(frames[-1].f_globals.get("__name__", ""))


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in _OURS


@contextmanager
def recording(run: Path) -> Iterator[None]:
    """Without an agent the first rank that fails writes failure.json, with what it knows."""
    before = _written(run)
    try:
        yield
    except Exception as error:
        if not is_watched() and not has_lost_contact(error):
            with suppress(OSError):
                if _written(run) == before:  # else another rank was first
                    _record(run, error)
        raise


def _written(run: Path) -> tuple[int, int] | None:
    """Tells one failure.json from another; by no clock, as a file server has its own."""
    try:
        known = (run / "failure.json").stat()
    except OSError:
        return None
    return known.st_ino, known.st_mtime_ns


def _record(run: Path, error: Exception) -> None:
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
