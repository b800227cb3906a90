from __future__ import annotations

import sys

import pytest

from cluster.interface import choose_interface, interface_of, meeting_address
from tests.testbed.hosts import Bed


def test_a_run_of_one_host_is_left_alone() -> None:
    environment: dict[str, str] = {}
    choose_interface(environment, "127.0.0.1")
    choose_interface(environment, "localhost")
    choose_interface(environment, "no-such-host.invalid")
    assert environment == {}
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.1") is None


def test_where_others_meet_is_an_address_that_leads_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no other host to reach, the one by which ssh came; never the loopback."""
    nowhere = ["", "no-such-host.invalid", "127.0.0.1"]
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 40000 10.0.0.2 22")
    assert meeting_address(nowhere) == "10.0.0.2"
    monkeypatch.setenv("SSH_CONNECTION", "127.0.0.1 40000 127.0.1.1 22")
    with pytest.raises(OSError, match="no network leads from this host"):
        meeting_address(nowhere)


@pytest.mark.slow
def test_the_interface_that_leads_to_the_master_is_taken_whatever_names_say(bed: Bed) -> None:
    """The network is eth0; the node's name is 127.0.1.1 first, and a second address on a second interface."""
    code = (
        "import os; from cluster.interface import *; env = {}; choose_interface(env, 'node1'); "
        "said = {'NCCL_SOCKET_IFNAME': 'ib0'}; choose_interface(said, 'node1'); "
        "print(address_towards('node1'), address_towards('10.77.0.2'), interface_of('10.88.0.1'), "
        "interface_of('10.77.9.1'), sorted(env.items()), said)"
    )
    for node in bed.nodes:
        node.ip("link", "add", "other", "type", "bridge")
        node.ip("addr", "add", "10.88.0.1/24", "dev", "other")
        node.ip("addr", "add", "10.77.9.1/32", "dev", "eth0")  # a second one
        try:
            told = node.run([sys.executable, "-c", code], check=True).stdout.strip()
        finally:
            node.ip("link", "del", "other")
            node.ip("addr", "del", "10.77.9.1/32", "dev", "eth0")
        chosen = [("GLOO_SOCKET_IFNAME", "eth0"), ("NCCL_SOCKET_IFNAME", "eth0")]
        own = node.address
        assert told == f"{own} {own} other eth0 {chosen} {{'NCCL_SOCKET_IFNAME': 'ib0'}}"
