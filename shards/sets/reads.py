"""Reading from a disk or a bucket that may be away for a moment."""

from __future__ import annotations

import errno
import logging
import math
import time
from collections.abc import Callable
from typing import TypeVar

_log = logging.getLogger(__name__)

RETRY_DEADLINE_S = 60.0
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_LASTING = {
    errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG,
    errno.EEXIST, errno.EINVAL, errno.EOPNOTSUPP,
}  # fmt: skip

T = TypeVar("T")
Range = tuple[str, int, int]  # name, offset, size


def retried(action: Callable[[], T], what: str) -> T:
    """`action()`, tried again with longer and longer pauses while it raises an OSError that may pass, until
    RETRY_DEADLINE_S after the first."""
    end, pause_s = math.inf, _FIRST_PAUSE_S
    while True:
        try:
            return action()
        except OSError as error:
            end = min(end, time.monotonic() + RETRY_DEADLINE_S)
            if error.errno in _LASTING or time.monotonic() + pause_s > end:
                raise
            _log.warning("%s: %s; trying again in %.1f s", what, error.strerror or type(error).__name__, pause_s)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
