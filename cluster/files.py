"""Files that are there as a whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_PASSES = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)  # a network file system may fail so once and work again
_PAUSES_S = (0.5, 2.0)


def persistently(action: Callable[[], T]) -> T:
    """What `action` returns; it is tried three times when a disk fails in a way that may pass (not when it is full)."""
    for pause_s in _PAUSES_S:
        try:
            return action()
        except OSError as error:
            if error.errno not in _PASSES:
                raise
        time.sleep(pause_s)
    return action()


def words(error: BaseException) -> str:
    """What the system says of an error, within a sentence."""
    said = getattr(error, "strerror", None)
    return said[0].lower() + said[1:] if said else str(error)


def write_atomically(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Replace `path` with `content`, whole or in parts: readers see the old file or the new one, never a part. Makes
    the folder.

    An OSError names `path`, not the temporary file.
    """
    try:
        _write_atomically(path, content)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def _write_atomically(path: Path, content: bytes | Iterable[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and links in `folder` survive a power cut; of a file, what is in it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder under another name that becomes `out` when all of it is on the disk. Raises ValueError when `out` holds
    something."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: already there; choose another name or remove it first")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.parent / f".{out.name}.tmp"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
        for path in (*folder.rglob("*"), folder):
            sync_folder(path)
        folder.replace(out)
        sync_folder(out.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
