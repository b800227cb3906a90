from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.lock import folder_lock, wait_until_free

HOLD = """
import sys, pathlib, cluster.lock
with cluster.lock.folder_lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


def test_a_folder_is_waited_for_until_it_is_free_or_for_so_long(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_env()) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        holder.stdout.readline()
        began_s = time.monotonic()
        wait_until_free(tmp_path, 0.6)
        assert time.monotonic() - began_s >= 0.6
        assert holder.poll() is None
        holder.stdin.write(b"\n")
        holder.stdin.flush()
        wait_until_free(tmp_path, 60)
    assert time.monotonic() - began_s < 50
    with folder_lock(tmp_path):
        pass


def test_second_run_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_env()
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    with (
        pytest.raises(ValueError, match=f"already in use by process {holder.pid} on .*; wait for it"),
        folder_lock(tmp_path),
    ):
        pass
    holder.kill()
    holder.wait()
    with folder_lock(tmp_path):  # a killed holder holds nothing
        pass


def test_folder_is_made_and_free_again_after_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with pytest.raises(KeyError), folder_lock(folder):
        raise KeyError
    with folder_lock(folder):
        assert str(os.getpid()) in (folder / ".lock").read_text()


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
