"""One run per folder: whoever writes into a folder holds its lock, and a second one is told who the first is."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
