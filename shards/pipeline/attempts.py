"""Unfinished work of one task, and how to tell what was left behind by the dead from what is still being written.

    _tmp/000003-<hex>.lock   held by its writer with flock; the kernel lets go of it however the writer ends
    _tmp/000003-<hex>/       its files

Whoever gets the lock of an attempt knows that nobody works on it any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.sets.store import Store

_OLD_S = 600.0  # files that no lock belongs to are written within moments


@contextmanager
def attempt(store: Store, name: str) -> Iterator[Path]:
    """A new folder in the store's scratch that nobody removes while the block runs, and that is gone after it."""
    descriptor, folder = _locked(store.scratch(), name)
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _lock_of(folder).unlink(missing_ok=True)
        os.close(descriptor)


def _locked(scratch: Path, name: str) -> tuple[int, Path]:
    while True:
        folder = scratch / f"{name}-{uuid.uuid4().hex}"
        descriptor = os.open(_lock_of(folder), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if _lock_of(folder).stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor, folder
        os.close(descriptor)  # somebody cleaned up between the file and its lock


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def remove_dead_attempts(store: Store) -> None:
    """Delete what killed writers left in the store's scratch; what a living one works on stays."""
    scratch = store.scratch()
    for path in scratch.iterdir():
        with contextlib.suppress(FileNotFoundError):  # two may clean at once
            if path.name.startswith("."):  # the root's own lock, of a store that has it here
                continue
            if path.suffix == ".lock":
                _remove_if_dead(path)
            elif path.is_dir():
                if not _lock_of(path).exists():
                    shutil.rmtree(path, ignore_errors=True)
            elif time.time() - path.stat().st_mtime > _OLD_S:
                path.unlink()


def _remove_if_dead(lock: Path) -> None:
    descriptor = os.open(lock, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
        lock.unlink()
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)
