"""Where a shard set lies: a folder on a local disk or on NFS, or a bucket (`shards/sets/object_store.py`).

Readers and writers of shard sets know files by their names below the root and go through here, so that what holds of
one kind of store (a commit happens once, a read is retried and then raised) holds of all.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from cluster.files import sync_folder, write_atomically
from cluster.lock import folder_lock
from shards.sets.reads import Range, retried

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.EXDEV}
_MAX_OPEN_FILES = 64


class Store(Protocol):
    """The files of one root. Names are relative to it with `/`; `..` may lead out of it."""

    url: str

    def read(self, name: str) -> bytes:
        """The whole file. Raises FileNotFoundError when there is none."""
        ...

    def size(self, name: str) -> int:
        """Bytes of the file. Raises FileNotFoundError when there is none."""
        ...

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        """The bytes of each range, shorter where the file ends. An OSError is tried again until a deadline, then
        raised: a sample that a moment later would be there must not be taken for lost."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a file: readers see the old one or the new one."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Write a file unless there is one of that name, which makes this False. Of two at once one is first."""
        ...

    def put(self, local: Path, name: str) -> None:
        """Move a finished local file to its place."""
        ...

    def names(self, folder: str) -> list[str]:
        """Sorted names of the files directly in a folder; none when there is no folder."""
        ...

    def folders(self, folder: str) -> list[str]:
        """Sorted names of the folders directly in a folder, "" for the root; none when there is no folder."""
        ...

    def delete(self, name: str) -> None:
        """Delete a file if it is there."""
        ...

    def scratch(self) -> Path:
        """A local folder for unfinished files, from which `put` is cheap."""
        ...

    def free_bytes(self) -> int | None:
        """Room that is left; None when the store knows no limit."""
        ...

    def lock(self) -> AbstractContextManager[None]:
        """Hold the root against a second writer, where the store can. Raises ValueError naming who holds it."""
        ...


def open_store(root: str | Path) -> Store:
    """The store at a folder or at `s3://bucket/prefix`. Raises ValueError for another URL, or one that holds keys."""
    if not is_url(root):
        return FolderStore(Path(root))
    from shards.sets.object_store import ObjectStore

    return ObjectStore(str(root))


def is_url(root: str | Path) -> bool:
    """Whether a root is meant as a URL, well-formed or not, and not as a folder. (A Path would lose a slash of it.)"""
    return "://" in str(root) or str(root).startswith("s3:")


class FolderStore:
    """A folder on a disk that this host mounts."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self.url = str(root)
        self._open_files: dict[str, int] = {}

    def _path(self, name: str) -> Path:
        return self._root / name

    def read(self, name: str) -> bytes:
        return retried(self._path(name).read_bytes, str(self._path(name)))

    def size(self, name: str) -> int:
        return retried(self._path(name).stat, str(self._path(name))).st_size

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        return [retried(lambda r=r: self._pread(*r), str(self._path(r[0]))) for r in ranges]  # type: ignore[misc]

    def _pread(self, name: str, offset: int, size: int) -> bytes:
        try:
            return os.pread(self._descriptor(name), size, offset)
        except OSError:  # over NFS the file may have a new handle by now
            self._close(name)
            raise

    def _descriptor(self, name: str) -> int:
        if name not in self._open_files:
            if len(self._open_files) >= _MAX_OPEN_FILES:
                self._close(next(iter(self._open_files)))
            path = self._path(name)
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe in a file's place must not hang us
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise FileNotFoundError(errno.ENOENT, "not a plain file", str(path))
            self._open_files[name] = descriptor
        return self._open_files[name]

    def _close(self, name: str) -> None:
        descriptor = self._open_files.pop(name, None)
        if descriptor is not None:
            os.close(descriptor)

    def write(self, name: str, data: bytes) -> None:
        write_atomically(self._path(name), data)

    def create(self, name: str, data: bytes) -> bool:
        final = self._path(name)
        temporary = self.scratch() / f"{os.getpid()}-{time.monotonic_ns()}.new"
        write_atomically(temporary, data)
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            os.link(temporary, final)  # fails if somebody was faster; a rename would replace what they wrote
        except OSError as error:
            if error.errno in _NO_LINKS:
                what = "this file system makes no hard links, with which a shard is committed once; use another disk"
                raise OSError(error.errno, what, str(self._root)) from None
            if error.errno != errno.EEXIST:
                raise
            # Over NFS also ours, when the first answer was lost and the question asked again
            return temporary.stat().st_nlink > 1
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(final.parent)
        return True

    def put(self, local: Path, name: str) -> None:
        final = self._path(name)
        final.parent.mkdir(parents=True, exist_ok=True)
        local.replace(final)
        sync_folder(final.parent)

    def names(self, folder: str) -> list[str]:
        return self._list(folder, Path.is_file)

    def folders(self, folder: str) -> list[str]:
        return self._list(folder, Path.is_dir)

    def _list(self, folder: str, is_kind: Callable[[Path], bool]) -> list[str]:
        path = self._path(folder)
        try:
            return retried(lambda: sorted(entry.name for entry in path.iterdir() if is_kind(entry)), str(path))
        except FileNotFoundError:
            return []

    def delete(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def scratch(self) -> Path:
        folder = self._path("_tmp")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def free_bytes(self) -> int | None:
        return shutil.disk_usage(self._root).free

    @contextmanager
    def lock(self) -> Iterator[None]:
        with folder_lock(self._root):
            probe = f"_tmp/{os.getpid()}.probe"
            self.delete(probe)
            self.create(probe, b"")  # raises where a commit would, before any work is done
            self.delete(probe)
            yield

    def __del__(self) -> None:
        for descriptor in getattr(self, "_open_files", {}).values():
            os.close(descriptor)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open_files": {}}  # a file descriptor means nothing in another process
