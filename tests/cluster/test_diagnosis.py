"""Hosts that differ from each other or lack something: which check fails, and what it advises."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.diagnosis import Finding, Room, clocks, collective, findings, shared, the_same

GPU = {"name": "NVIDIA A100-SXM4-80GB", "memory_mib": 81920, "driver": "580.95"}
WHOLE = {
    "python": "3.11.7", "packages": {"torch": "2.13.0", "flash-attn": None}, "code": "0123456789ab", "gpus": [GPU] * 8,
    "free_bytes": 10**12, "shm_bytes": 10**11, "open_files": 65536, "locked_bytes": -1, "gpu_error": "",
    "infiniband": True,
}  # fmt: skip


def failed(slots: int = 8, **odd: Any) -> dict[str, tuple[str, str]]:
    """What fails when node2 is `odd`."""
    facts = {"node1": WHOLE, "node2": WHOLE | odd, "node3": WHOLE}
    rows = findings(facts, dict.fromkeys(facts, slots))
    return {row.check: (row.found, row.remedy) for row in rows if not row.ok}


def test_hosts_that_are_alike_pass() -> None:
    assert failed() == {}
    assert failed(gpus=[GPU] * 8, free_bytes=5 * 10**11) == {}


@pytest.mark.parametrize(
    ("odd", "check"),
    [
        ({"python": "3.12.1"}, "python"),
        ({"packages": {"torch": "2.12.1", "flash-attn": None}}, "packages"),
        ({"packages": {"torch": "2.13.0", "flash-attn": "2.8.3"}}, "packages"),
        ({"code": "ffffffffffff"}, "blsp-emo"),
        ({"gpus": [GPU] * 7}, "GPUs"),
        ({"gpus": []}, "GPUs"),
        ({"gpus": [], "gpu_error": "nvidia-smi: Driver/library version mismatch"}, "GPUs"),
        ({"gpus": [GPU | {"driver": "570.1"}] * 8}, "GPUs"),
        ({"free_bytes": 10**9}, "free disk"),
        ({"shm_bytes": 64 * 2**20}, "shared memory"),
        ({"open_files": 1024}, "ulimit"),
        ({"locked_bytes": 65536}, "ulimit"),
    ],
)
def test_the_odd_host_is_named_with_a_remedy(odd: dict[str, Any], check: str) -> None:
    rows = failed(**odd)
    assert list(rows) == [check]
    found, remedy = rows[check]
    assert "node2" in remedy and "node1" not in remedy and found


def test_the_disk_is_compared_with_what_the_run_takes_and_the_row_says_with_what() -> None:
    facts = {"a": WHOLE | {"free_bytes": 5 * 10**9}, "b": WHOLE}

    def disk(*room: Room) -> Finding:
        return next(row for row in findings(facts, {"a": 8, "b": 8}, *room) if row.check == "free disk")

    assert disk(Room(4 * 10**9, "3 checkpoints")).ok
    row = disk(Room(6 * 10**9, "5 checkpoints"))
    assert not row.ok and row.found == "5.0 GB; 6.0 GB are needed for 5 checkpoints" and "on a," in row.remedy
    assert not disk().ok, "nothing says how much"


def test_a_package_that_no_host_has_is_missing_but_for_flash_attention() -> None:
    facts = {"a": WHOLE | {"packages": {"torch": None, "flash-attn": None}}}
    (row,) = [row for row in findings(facts, {"a": 8}) if not row.ok]
    assert row.check == "packages" and row.found == "not installed: torch"


def test_fewer_gpus_than_slots_is_the_hostfiles_fault() -> None:
    assert failed(gpus=[GPU] * 4)["GPUs"][1].startswith(
        "the hostfile promises more than there are: write node2 slots=4"
    )


def test_hosts_without_gpus_may_lock_little_memory() -> None:
    facts = {"a": WHOLE | {"gpus": [], "locked_bytes": 65536}}
    assert all(row.ok for row in findings(facts, {"a": 8}))


def test_hosts_without_infiniband_may_lock_little_memory() -> None:
    assert failed(infiniband=False, locked_bytes=65536) == {}
    assert list(failed(infiniband=True, locked_bytes=65536)) == ["ulimit"]


def test_a_driver_that_is_broken_everywhere_is_no_host_without_gpus() -> None:
    facts = {"a": WHOLE | {"gpus": [], "gpu_error": "nvidia-smi: Driver/library version mismatch"}}
    (row,) = [row for row in findings(facts, {"a": 8}) if not row.ok]
    assert row.check == "GPUs" and row.found == "a: nvidia-smi: Driver/library version mismatch"


def test_a_gpu_without_memory_of_its_own_is_one() -> None:
    facts = {"a": WHOLE | {"gpus": [GPU | {"name": "GB10", "memory_mib": None}]}}
    assert [row.found for row in findings(facts, {"a": 1}) if row.check == "GPUs"] == ["1 x GB10; driver 580.95"]


def test_every_odd_package_of_a_host_is_listed_beside_what_most_have() -> None:
    odd = {"torch": "2.12.1", "flash-attn": None, "peft": None}
    usual = {"torch": "2.13.0", "flash-attn": None, "peft": "0.18.0"}
    facts = {host: WHOLE | {"packages": usual} for host in ("node1", "node2", "node3")}
    facts["node1"] = WHOLE | {"packages": odd}
    (row,) = [row for row in findings(facts, {}) if not row.ok]
    assert row.found == "node1: torch 2.12.1, peft missing; elsewhere torch 2.13.0, peft 0.18.0"


def test_a_sum_over_gloo_fails_where_there_are_gpus() -> None:
    told = {"ranks": 3, "backend": "gloo", "bytes_per_s": 5e8, "interfaces": ["eth0", "eth0", ""]}
    facts = {"a": WHOLE | {"gpus": []}, "b": WHOLE | {"gpus": []}}
    row = collective(told, facts, {"a": 2, "b": 1})
    assert row.ok and row.found == "3 ranks, gloo, 0.50 GB/s per rank; a eth0, b chosen by itself"
    row = collective(told, facts | {"b": WHOLE}, {"a": 2, "b": 1})
    assert not row.ok and "no GPU on b:" in row.remedy
    assert collective(told | {"backend": "nccl"}, facts | {"b": WHOLE}, {"a": 2, "b": 1}).ok


def test_clocks_that_differ_by_seconds_fail() -> None:
    assert clocks({"a": 0.001, "b": -0.5}).ok
    row = clocks({"a": 0.001, "b": -90.0})
    assert not row.ok and row.found == "b: -90.0 s"
    assert not clocks({"a": None}).ok


def test_a_folder_is_shared_when_everybody_sees_what_everybody_wrote() -> None:
    left = {"a": "token-0", "b": "token-1"}
    assert shared("/runs", {"a": ["token-0", "token-1"], "b": ["token-0", "token-1"]}, left).ok
    row = shared("/runs", {"a": ["token-0"], "b": ["token-1"]}, left)
    assert not row.ok and row.found == "a: does not see what b wrote; b: does not see what a wrote"


def test_another_model_and_one_that_cannot_be_read_are_told_apart() -> None:
    same = {"a": {"is": "m@1"}, "b": {"is": "m@1"}, "c": {"is": "m@1"}}
    assert the_same("model.llm", same, "").ok
    other = the_same("model.llm", same | {"b": {"is": "m@2"}}, "give the same")
    assert not other.ok and "another one lies on b" in other.remedy
    unread = the_same("model.llm", same | {"b": {"error": "no such folder"}}, "give the same")
    assert not unread.ok and unread.found == "b: no such folder"
