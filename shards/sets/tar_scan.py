"""What lies where in a tar that somebody else wrote: headers only, nothing is ever extracted.

The file may lie in every field. What is read at once is bounded, whatever sizes a header claims, and a member that is
not a plain file with a harmless name is passed on with the reason why nobody may read it.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MAX_NAME_BYTES = 1024
_BLOCK = tarfile.BLOCKSIZE
_CHUNK_BYTES = 8 * 2**20
_MAX_EXTENDED_BYTES = 64 * 2**10
_MAX_EXTENDED = 8  # in front of one member
_MAX_MEMBERS = 10**7
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_WITHOUT_CONTENT = (
    tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE,
)  # fmt: skip
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_GNU_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


@dataclass(frozen=True)
class Member:
    """A file in a tar: its content is `size` bytes from `offset` on. `refused` says why it must not be used."""

    name: str
    offset: int
    size: int
    refused: str | None = None


class TarWindow:
    """The bytes of a file of `size` bytes, for somebody who walks through it; holds one chunk.

    `read(offset, size)` gets them from where they lie.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self.size = size
        self._read = read
        self._start, self._chunk = 0, b""

    def get(self, offset: int, size: int) -> bytes:
        """The bytes from `offset` on; fewer where the file ends."""
        size = max(0, min(size, self.size - offset))
        if not self._start <= offset <= offset + size <= self._start + len(self._chunk):
            self._start = offset
            self._chunk = self._read(offset, min(max(size, _CHUNK_BYTES), self.size - offset)) if size else b""
        return self._chunk[offset - self._start : offset - self._start + size]


def scan_tar(window: TarWindow) -> Iterator[Member]:
    """Every member but folders, in order.

    Raises ValueError, in a few words, for a file that is no plain tar, is damaged or cut off.
    """
    if packed := next((how for magic, how in _PACKED.items() if window.get(0, 8).startswith(magic)), None):
        raise ValueError(f"packed with {packed}; only plain tars can be read in place, so unpack it to a .tar")
    offset, extended, members = 0, 0, 0
    said: dict[str, str] = {}  # by extended headers about the next member
    while (info := _header(window, offset)) is not None:
        content = offset + _BLOCK
        if info.type in _PAX or info.type in _GNU_LONG:
            extended += 1
            if info.size > _MAX_EXTENDED_BYTES or extended > _MAX_EXTENDED:
                raise ValueError(f"the extended header at byte {offset} is larger than any sample needs")
            said |= _extended(info, window.get(content, info.size), offset)
        elif info.type == tarfile.GNUTYPE_SPARSE:
            raise ValueError(f"holds a sparse file at byte {offset}; only plain files can be read in place")
        else:
            info.name = said.get("path", info.name)
            info.size = 0 if info.type in _WITHOUT_CONTENT else _size(said, info.size, offset)
            if content + info.size > window.size:
                raise ValueError(f"cut off inside {info.name[:80]!r}; fetch it again, or leave it out")
            if not info.isdir():
                yield Member(info.name[:MAX_NAME_BYTES], content, info.size, _refusal(info, said))
            said, extended, members = {}, 0, members + 1
            if members > _MAX_MEMBERS:
                raise ValueError(f"has more than {_MAX_MEMBERS:,} members; split it")
        offset = content + -(-info.size // _BLOCK) * _BLOCK


def _header(window: TarWindow, offset: int) -> tarfile.TarInfo | None:
    """None at the end that a whole tar has."""
    try:
        info = tarfile.TarInfo.frombuf(window.get(offset, _BLOCK), "utf-8", "replace")
    except tarfile.HeaderError as error:
        if type(error).__name__ == "EOFHeaderError":
            return None
        if offset >= window.size - _BLOCK:
            raise ValueError("cut off: it ends without an end mark; fetch it again, or leave it out") from None
        what = "not a tar" if offset == 0 else f"damaged at byte {offset}"
        raise ValueError(f"{what} ({error})") from None
    except (ValueError, OverflowError) as error:
        raise ValueError(f"damaged at byte {offset} ({error})") from None
    if info.size < 0:
        raise ValueError(f"damaged at byte {offset} (a member of {info.size} bytes)")
    return info


def _extended(info: tarfile.TarInfo, content: bytes, offset: int) -> dict[str, str]:
    """What an extended header says that matters here: `path`, `size`, `sparse`."""
    if info.type == tarfile.GNUTYPE_LONGLINK:
        return {}
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": content.rstrip(b"\0").decode("utf-8", "replace")}
    said, position = {}, 0
    while position < len(content) and content[position]:
        length, _, _ = content[position : position + 8].partition(b" ")
        record = content[position : position + int(length)] if length.isdigit() else b""
        key, equals, value = record[len(length) + 1 : -1].partition(b"=")
        if not equals or len(record) != int(length) or not record.endswith(b"\n"):
            raise ValueError(f"the extended header at byte {offset} is damaged")
        name = key.decode("utf-8", "replace")
        if name in ("path", "size") or name.startswith("GNU.sparse"):
            said["sparse" if name.startswith("GNU.sparse") else name] = value.decode("utf-8", "replace")
        position += len(record)
    if said and info.type == tarfile.XGLTYPE:
        raise ValueError(f"the header at byte {offset} gives all members the same {' and '.join(said)}")
    return said


def _size(said: dict[str, str], size: int, offset: int) -> int:
    text = said.get("size", "")
    if not text:
        return size
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ValueError(f"the extended header before byte {offset} gives the size {text[:40]!r}")
    return int(text)


def _refusal(info: tarfile.TarInfo, said: dict[str, str]) -> str | None:
    """Why a member must not be used, None for a plain file with a harmless name."""
    if info.issym() or info.islnk():
        return "a link"
    if not info.isreg():
        return "not a plain file"
    if "sparse" in said:
        return "a sparse file"
    if len(info.name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        return f"a name of more than {MAX_NAME_BYTES} bytes"
    if info.name.startswith("/") or ".." in info.name.split("/") or "\0" in info.name or "\\" in info.name:
        return "a name that leads out of the tar"
    return None
