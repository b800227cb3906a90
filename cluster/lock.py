"""One run per folder: whoever writes into a folder holds its lock, and a second one is told who the first is."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ASK_AGAIN_S = 0.5


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold `folder` (made if missing) while the block runs; the kernel lets go of it however the process ends.

    Raises ValueError naming the process that holds it, OSError where files cannot be locked. The lock is the file
    `.lock`, which stays behind on purpose: removing it would let two processes lock two different files of that name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                what = f"this file system has no locks ({error.strerror}); use a local disk, or NFS mounted with locks"
                raise OSError(error.errno, what, str(folder)) from None
            owner = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            raise ValueError(
                f"{folder}: already in use by {owner}; wait for it, stop it, or choose another folder"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def wait_until_free(folder: Path, patience_s: float) -> None:
    """Return when nobody holds `folder`, and after `patience_s` in any case. A server of files keeps the lock of a host
    that was switched off for a while (NFS 4: 90 s)."""
    until_s = time.monotonic() + patience_s
    while time.monotonic() < until_s:
        try:
            with folder_lock(folder):
                return
        except ValueError:
            time.sleep(_ASK_AGAIN_S)
