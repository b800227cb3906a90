from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.hostfile import Host, read_hostfile

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
hosts_of_a_file = st.lists(st.builds(Host, names, st.integers(1, 9999)), min_size=1, unique_by=lambda host: host.name)
padding = st.sampled_from(["", " ", "\t", "  "])
noise = st.sampled_from(["", "# a comment", "   ", "#node slots=4"])
shared_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "hostfile"
    path.write_text(text, "utf-8")
    return path


@shared_folder
@given(hosts=hosts_of_a_file, data=st.data())
def test_hosts_come_back_in_order_whatever_the_layout(tmp_path: Path, hosts: list[Host], data: st.DataObject) -> None:
    lines = []
    for host in hosts:
        lines.append(data.draw(noise))
        gap = data.draw(st.sampled_from([" ", "\t", "   "]))
        lines.append(f"{data.draw(padding)}{host.name}{gap}slots={host.slots}{data.draw(padding)}{data.draw(noise)}")
    lines = [line.replace("#node", " #node").replace("# a", " # a") for line in lines]
    assert read_hostfile(written(tmp_path, "\n".join(lines))) == hosts


@shared_folder
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
