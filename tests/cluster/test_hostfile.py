from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.hostfile import Host, read_hostfile
from tests.bounds import bounded
from tests.fuzzing import fuzz

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
hosts_of_a_file = st.lists(st.builds(Host, names, st.integers(1, 9999)), min_size=1, unique_by=lambda host: host.name)
padding = st.sampled_from(["", " ", "\t", "  "])
noise = st.sampled_from(["", "# a comment", "   ", "#node slots=4"])


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "hostfile"
    path.write_text(text, "utf-8")
    return path


@fuzz
@given(hosts=hosts_of_a_file, data=st.data())
def test_hosts_come_back_in_order_whatever_the_layout(tmp_path: Path, hosts: list[Host], data: st.DataObject) -> None:
    lines = []
    for host in hosts:
        lines.append(data.draw(noise))
        gap = data.draw(st.sampled_from([" ", "\t", "   "]))
        lines.append(f"{data.draw(padding)}{host.name}{gap}slots={host.slots}{data.draw(padding)}{data.draw(noise)}")
    lines = [line.replace("#node", " #node").replace("# a", " # a") for line in lines]
    read = read_hostfile(written(tmp_path, "\n".join(lines)))
    assert read == hosts
    for host in read:
        path, _, number = host.where.rpartition(":")
        assert (path, lines[int(number) - 1].split()[0]) == (str(tmp_path / "hostfile"), host.name)


@fuzz
@given(text=st.text())
def test_any_text_is_read_or_refused_with_the_line(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text.encode("utf-8", "replace").decode())
    try:
        hosts = read_hostfile(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}:")
    else:
        assert hosts
        assert all(host.slots >= 1 for host in hosts)


def test_example_is_valid() -> None:
    assert [host.slots for host in read_hostfile(Path("hostfile.example"))] == [8, 8, 4]


def test_what_deepspeed_reads_deepspeed_reads_alike(tmp_path: Path) -> None:
    runner = pytest.importorskip("deepspeed.launcher.runner")
    path = written(tmp_path, "# two\nnode-1 slots=8\n\nnode-2 slots=4 # small\n")
    assert runner.fetch_hostfile(str(path)) == {host.name: host.slots for host in read_hostfile(path)}


def test_every_bad_line_is_named_at_once(tmp_path: Path) -> None:
    path = written(
        tmp_path, "a slots=2\nb\nc slots=8x\n-oProxyCommand=x slots=1\nd slots=0\na slots=4\ne slots=1 max=2\n"
    )
    with pytest.raises(ValueError) as refused:
        read_hostfile(path)
    lines = str(refused.value).split("\n")
    assert [line.removeprefix(f"{path}:").split(":")[0] for line in lines] == ["2", "3", "4", "5", "6", "7"]
    assert "has no slots" in lines[0]
    assert "'slots=8x'" in lines[1]
    assert "not a host name" in lines[2]
    assert "already named on line 1" in lines[4]


def test_a_file_without_hosts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names no host"):
        read_hostfile(written(tmp_path, "# nothing\n"))


HOSTILE = {
    "a command": (b"a;touch${IFS}ran slots=1\n", "'a;touch${IFS}ran' is not a host name"),
    "a substitution": (b"$(id) slots=1\n`id` slots=1\n", "'`id`' is not a host name"),
    "an option of ssh": (b"-oProxyCommand=touch${IFS}ran slots=1\n", "is not a host name"),
    "a user and a port": (b"root@a:22 slots=1\n", "is not a host name"),
    "words to a terminal": (b"a\x1b[2J\x07 slots=1\n", r"'a\x1b[2J\x07' is not a host name"),
    "the end of a name": (b"a\0b slots=1\n", r"'a\x00b' is not a host name"),
    "no UTF-8": (b"\xff\xfe slots=1\n", "is not a host name"),
    "a long name": (b"a" * 254 + b" slots=1\n", "is not a host name"),
    "a long line": (b"a slots=" + b"9" * 1_000_000, "expected slots=N with N from 1 to 9999"),
    "many words": (b"a slots=1" + b" b" * 500_000, "'b' is not understood"),
    "a million lines": (b"\n" * 10**6 + b"a b\n", "hostfile:1000001: 'b': expected slots=N"),
    "many bad lines": (b"a\n" * 500_000, "... and 499980 more bad lines"),
    "many hosts": (b"node slots=1\n" * 100_000, "larger than 1 MiB"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_within_seconds_and_little_memory(tmp_path: Path, name: str) -> None:
    content, what = HOSTILE[name]
    path = tmp_path / "hostfile"
    path.write_bytes(content)
    ended = bounded(lambda: read_hostfile(path), seconds=5, megabytes=200)
    assert ended.error == "ValueError"
    assert what in ended.said
    assert len(ended.said) < 20_000
    assert ended.said.replace("\n", "").isprintable()


def test_a_file_without_end_is_refused() -> None:
    ended = bounded(lambda: read_hostfile(Path("/dev/zero")), seconds=5, megabytes=100)
    assert (ended.error, "larger than 1 MiB" in ended.said) == ("ValueError", True)
