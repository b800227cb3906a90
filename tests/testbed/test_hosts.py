"""The bed itself: what the tests on it take for granted."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.testbed.hosts import Bed, ctrl_c

pytestmark = pytest.mark.slow


def test_every_host_reaches_every_other_by_ssh_and_is_a_host_of_its_own(bed: Bed) -> None:
    asked = 'hostname; getent hosts "$(hostname)"; echo /proc/[0-9]*; pwd'
    for here in bed.hosts:
        for there in bed.nodes:
            told = here.run(["ssh", there.name, asked], check=True).stdout.splitlines()
            assert told[:2] == [there.name, f"127.0.1.1       {there.name}"]
            assert len(told[-2].split()) < 12
            assert told[-1] == "/run/home"
    boots = {host.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout for host in bed.hosts}
    assert len(boots) == len(bed.hosts)


def test_a_host_can_lose_its_network_and_its_power_and_come_back(bed: Bed) -> None:
    node = bed.nodes[1]
    asked = ["ssh", "-o", "ConnectTimeout=1", node.name, "true"]
    node.unplug()
    assert bed.login.run(asked).returncode == 255
    bed.mend()
    assert bed.login.run(asked).returncode == 0
    sleeper = node.start(["python3", "-c", "import time; time.sleep(600)"])
    while not (pids := [pid for pid, line in node.processes().items() if line.startswith("python3 ")]):
        time.sleep(0.05)
    (pid,) = pids
    node.power_off()
    assert sleeper.wait(10) != 0
    assert not psutil.pid_exists(pid)
    assert bed.login.run(asked).returncode == 255
    bed.mend()
    assert bed.login.run(asked).returncode == 0
    assert node.processes() == {}


def test_ctrl_c_reaches_a_command_as_from_a_terminal(bed: Bed) -> None:
    started = bed.login.start(["bash", "-c", "trap 'exit 7' INT; echo on; while :; do sleep 0.1; done"],
                              stdout=subprocess.PIPE)  # fmt: skip
    assert started.stdout is not None
    assert started.stdout.readline() == "on\n"
    ctrl_c(started)
    assert started.wait(10) == 7


def test_nothing_of_a_bed_is_on_the_machine_itself(bed: Bed) -> None:
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    assert "node1" not in links
    assert "127.0.1.1 node1" not in Path("/etc/hosts").read_text()
    assert not Path("/run/bed").exists()
