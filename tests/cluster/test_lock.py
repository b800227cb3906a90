from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.lock import folder_lock

HOLD = """
import sys, pathlib, cluster.lock
with cluster.lock.folder_lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


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
