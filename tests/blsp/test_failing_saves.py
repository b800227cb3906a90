"""Saves that are killed, or meet a disk's error, at every call that changes the disk: real processes, real signals,
real ZeRO-3 state; only the tracer's hand is in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.blsp import syscalls

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not syscalls.available(), reason="needs Linux on x86-64 and leave to trace processes"),
]

Results = dict[str, Any]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What `tests.blsp.failing_saves` found."""
    root = tmp_path_factory.mktemp("saves")
    ran = subprocess.run(
        [sys.executable, "-m", "tests.blsp.failing_saves", str(root), str(root / "results.json")],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=Path(__file__).parents[2], text=True, capture_output=True,
        timeout=200, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found: Results = json.loads((root / "results.json").read_text())
    return found


def met(results: Results, *whats: str) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """(call, what became of the save) of each fault of that kind."""
    return [(results["calls"][one["at"]], one) for one in results["results"] if one["what"] in whats]


def test_every_kind_of_call_is_among_them(results: Results) -> None:
    assert len(results["calls"]) > 40
    assert {call["name"] for call in results["calls"]} >= {"mkdir", "open", "write", "fsync", "rename", "unlink"}
    assert len({call["path"] for call in results["calls"] if call["name"] == "write"}) == 5


def test_after_a_kill_at_any_call_the_newest_checkpoint_is_the_one_before_or_the_new_one_and_loads(
    results: Results,
) -> None:
    killed = met(results, "kill", "half")
    assert len(killed) == len(results["calls"]) + sum(call["name"] == "write" for call in results["calls"])
    committed = next(one["at"] for call, one in killed if (call["name"], call["path"]) == ("fsync", "."))
    for call, one in killed:
        step = 10 if one["at"] >= committed else 5
        assert one["said"] is None  # it came to no end
        assert (one["newest"], one["weights"]) == (f"step-{step:06d}", results["weights"][str(step)]), call


def test_the_next_save_removes_what_was_left(results: Results) -> None:
    for call, one in met(results, "kill", "half", "EIO", "ENOSPC"):
        assert one["after"] == ["step-000015"], (call, one["what"])


def test_a_disk_that_fails_once_costs_no_checkpoint(results: Results) -> None:
    for call, one in met(results, "EIO"):
        named = (call["name"], call["path"]) == ("rename", ".step-000010.000000.tmp")  # not tried twice: it is the one
        assert one["newest"] == ("step-000005" if named else "step-000010"), call
        assert one["weights"] == results["weights"]["5" if named else "10"]
        assert ("could not be written (input/output error)" in one["said"]) == named


def test_a_disk_that_is_full_at_any_call_costs_this_checkpoint_at_most_and_it_is_said(results: Results) -> None:
    for call, one in met(results, "ENOSPC"):
        if one["newest"] == "step-000005":
            assert "step-000010: could not be written (no space left on device)" in one["said"], call
        else:
            assert (one["newest"], one["weights"]) == ("step-000010", results["weights"]["10"]), call
            assert "could not be written" not in one["said"], call
    assert {one["newest"] for _, one in met(results, "ENOSPC")} == {"step-000005", "step-000010"}


def test_all_of_it_is_on_the_disk_before_it_has_its_name_and_the_old_one_goes(results: Results) -> None:
    """A power cut keeps what was synced and any part of the rest."""
    calls = [(call["name"], call["path"]) for call in results["calls"]]
    named = calls.index(("rename", temporary := ".step-000010.000000.tmp"))
    assert calls[named + 1] == ("fsync", ".")
    assert min(i for i, (_, path) in enumerate(calls) if path.startswith("step-000005")) > named + 1
    for i, (name, path) in enumerate(calls[:named]):
        if not path.startswith(f"{temporary}/"):
            continue
        if name == "write":
            assert ("fsync", path) in calls[i:named], path
        if name in ("open", "rename"):
            assert ("fsync", str(Path(path).parent)) in calls[i:named], path
