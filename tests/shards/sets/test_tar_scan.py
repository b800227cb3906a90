"""What a scan finds is what tarfile finds, and whatever a tar holds costs a sentence at most."""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.sets.tar_scan import Member, TarWindow, scan_tar
from tests.fuzzing import fuzz

NAMES = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\0\\"), min_size=1, max_size=12).filter(
        lambda part: part not in (".", "..") and "/" not in part
    ),
    min_size=1,
    max_size=20,
).map("/".join)


def scan(data: bytes) -> list[Member]:
    return list(scan_tar(window(data)))


def window(data: bytes) -> TarWindow:
    return TarWindow(lambda offset, size: data[offset : offset + size], len(data))


def tar(fill: Callable[[tarfile.TarFile], None], form: int = tarfile.PAX_FORMAT) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=form) as file:
        fill(file)
    return content.getvalue()


def info(name: str, size: int = 0, **fields: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size = size
    for field, value in fields.items():
        setattr(made, field, value)
    return made


@fuzz
@given(
    files=st.lists(st.tuples(NAMES, st.binary(max_size=1500), st.floats(0, 2**31)), min_size=1, max_size=6),
    form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_members_are_those_that_tarfile_finds(files: list[tuple[str, bytes, float]], form: int) -> None:
    """Long names and fractional times take extended headers, of either kind."""

    def fill(file: tarfile.TarFile) -> None:
        for name, data, mtime in files:
            file.addfile(info(name, len(data), mtime=mtime), io.BytesIO(data))

    data = tar(fill, form)
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        expected = [(member.name, member.offset_data, member.size) for member in file]
    found = scan(data)
    assert [(member.name, member.offset, member.size) for member in found] == expected
    assert [data[member.offset : member.offset + member.size] for member in found] == [data for _, data, _ in files]
    assert all(member.refused is None for member in found)


@pytest.mark.parametrize(
    ("member", "why"),
    [
        (info("a.wav", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "a link"),
        (info("a.wav", type=tarfile.LNKTYPE, linkname="b.wav"), "a link"),
        (info("a.wav", type=tarfile.CHRTYPE, devmajor=1, devminor=5), "not a plain file"),
        (info("a.wav", type=tarfile.BLKTYPE), "not a plain file"),
        (info("a.wav", type=tarfile.FIFOTYPE), "not a plain file"),
        (info("/etc/a.wav"), "a name that leads out of the tar"),
        (info("../a.wav"), "a name that leads out of the tar"),
        (info("b/../../a.wav"), "a name that leads out of the tar"),
        (info("..\\a.wav"), "a name that leads out of the tar"),
        (info("x" * 2000 + ".wav"), "a name of more than 1024 bytes"),
        (info("a.wav", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}), "a sparse file"),
    ],
)
def test_a_member_that_is_no_harmless_file_is_refused_and_its_neighbours_are_read(
    member: tarfile.TarInfo, why: str
) -> None:
    def fill(file: tarfile.TarFile) -> None:
        file.addfile(info("before.txt", 3), io.BytesIO(b"abc"))
        file.addfile(member)
        file.addfile(info("folder", type=tarfile.DIRTYPE))
        file.addfile(info("after.txt", 3), io.BytesIO(b"abc"))

    before, refused, after = scan(tar(fill))
    assert (before.name, after.name, before.refused, after.refused) == ("before.txt", "after.txt", None, None)
    assert refused.refused == why


def header(**fields: object) -> bytes:
    name = str(fields.pop("name", "a.wav"))
    return info(name, **fields).tobuf(tarfile.GNU_FORMAT)  # type: ignore[arg-type]


PLAIN = header(size=3) + b"abc".ljust(512, b"\0")
END = bytes(1024)
HUGE = 2**50


def broken_tars() -> dict[str, tuple[bytes, str]]:
    pax = tarfile.XHDTYPE
    return {
        "nothing": (b"", "cut off: it ends without an end mark"),
        "text": (b"hello, world\n" * 100, "not a tar"),
        "gzip": (gzip.compress(PLAIN + END), "packed with gzip; only plain tars"),
        "gzip bomb": (gzip.compress(bytes(10**7)), "packed with gzip; only plain tars"),
        "no end": (PLAIN, "cut off: it ends without an end mark"),
        "cut off": (PLAIN[:514], "cut off inside 'a.wav'"),
        "cut header": (PLAIN + PLAIN[:300], "cut off: it ends without an end mark"),
        "lying size": (header(size=HUGE) + b"abc" + END, "cut off inside 'a.wav'"),
        "flipped": (PLAIN + PLAIN.replace(b"a.wav", b"b.wav") + END, "damaged at byte 1024"),
        "huge extended header": (header(type=pax, size=HUGE) + END, "the extended header at byte 0 is larger"),
        "huge long name": (header(type=tarfile.GNUTYPE_LONGNAME, size=HUGE) + END, "the extended header at byte 0"),
        "chain of headers": (header(type=pax, size=0) * 1000 + PLAIN + END, "the extended header at byte 4096"),
        "sparse": (header(type=tarfile.GNUTYPE_SPARSE, size=3) + END, "holds a sparse file at byte 0"),
        "bad record": (header(type=pax, size=8) + b"99 a=b\n".ljust(512, b"\0") + END, "at byte 0 is damaged"),
        "bad length": (header(type=pax, size=8) + b"-1 a=b\n".ljust(512, b"\0") + END, "at byte 0 is damaged"),
        "size in words": (
            header(type=pax, size=12) + b"12 size=1e9\n".ljust(512, b"\0") + PLAIN + END, "gives the size '1e9'"
        ),
        "size in a record": (
            header(type=pax, size=16) + b"16 size=1000000\n".ljust(512, b"\0") + PLAIN + END, "cut off inside 'a.wav'"
        ),
        "one path for all": (
            header(type=tarfile.XGLTYPE, size=12) + b"12 path=abc\n".ljust(512, b"\0") + PLAIN + END,
            "gives all members the same path",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("kind", broken_tars())
def test_what_is_no_whole_plain_tar_is_a_sentence(kind: str) -> None:
    data, sentence = broken_tars()[kind]
    with pytest.raises(ValueError, match=sentence):
        scan(data)


@fuzz
@given(data=st.data())
def test_whatever_the_bytes_are_a_scan_ends_with_members_inside_the_file_or_a_sentence(data: st.DataObject) -> None:
    content = bytearray(
        PLAIN + header(type=tarfile.XHDTYPE, size=12) + b"12 path=abc\n".ljust(512, b"\0") + PLAIN + END
    )
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(content)))
        content[place : place + data.draw(st.integers(0, 600))] = data.draw(st.binary(max_size=600))
    for start in range(0, len(content) - 511, 512):  # so that damage is not found by the checksum alone
        if data.draw(st.booleans()):
            block = content[start : start + 512]
            content[start + 148 : start + 156] = b"%06o\0 " % (256 + sum(block[:148]) + sum(block[156:]))
    try:
        found = scan(bytes(content))
    except ValueError as error:
        assert str(error) and len(str(error)) < 300
    else:
        assert all(0 < member.offset <= member.offset + member.size <= len(content) for member in found)


def test_memory_is_bounded_whatever_a_header_claims(tmp_path: Path) -> None:
    """A sparse file of 100 GiB whose every size fits is walked through without reading it."""
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        file.write(header(size=100 * 2**30))
        file.seek(512 + 100 * 2**30)
        file.write(PLAIN + END)
    sizes: list[int] = []

    def read(offset: int, size: int) -> bytes:
        sizes.append(size)
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    tracemalloc.start()
    found = list(scan_tar(TarWindow(read, path.stat().st_size)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [member.size for member in found] == [100 * 2**30, 3]
    assert max(sizes) <= 8 * 2**20
    assert peak < 40 * 2**20
