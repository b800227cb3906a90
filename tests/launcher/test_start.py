"""The `deepspeed` command line that `blsp train` runs, and what reaches the ranks through it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launcher import start


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "has_gpu", lambda: False)


@pytest.fixture
def hostfile(tmp_path: Path) -> Path:
    path = tmp_path / "hostfile"
    path.write_text("node-1 slots=2\n")
    return path


def test_one_host_gets_a_port_of_its_own(no_gpu: None) -> None:
    first = start.command(Path("a.yaml"), ["data.seed=2"], hostfile=None, processes=2)
    second = start.command(Path("a.yaml"), [], hostfile=None, processes=2)
    assert first[:3] == [sys.executable, "-m", "deepspeed.launcher.runner"]
    assert first[first.index("--num_accelerators") + 1] == "2"
    assert first[-4:] == ["launcher.train", "--config", "a.yaml", "data.seed=2"]
    assert first[first.index("--master_port") + 1] != second[second.index("--master_port") + 1]


def test_without_a_gpu_one_process_is_the_default(no_gpu: None) -> None:
    arguments = start.command(Path("a.yaml"), [], hostfile=None, processes=None)
    assert arguments[arguments.index("--num_accelerators") + 1] == "1"


def test_with_gpus_deepspeed_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "has_gpu", lambda: True)
    assert "--num_accelerators" not in start.command(Path("a.yaml"), [], hostfile=None, processes=None)


def test_a_hostfile_is_checked_first_and_says_how_many(hostfile: Path) -> None:
    arguments = start.command(Path("a.yaml"), [], hostfile=hostfile, processes=None, debug=True)
    assert arguments[arguments.index("--hostfile") + 1] == str(hostfile)
    assert arguments[-1] == "--debug"
    with pytest.raises(ValueError, match="not both"):
        start.command(Path("a.yaml"), [], hostfile=hostfile, processes=2)
    hostfile.write_text("node-1\n")
    with pytest.raises(ValueError, match=":1: host 'node-1' has no slots"):
        start.command(Path("a.yaml"), [], hostfile=hostfile, processes=None)
    with pytest.raises(FileNotFoundError):
        start.command(Path("a.yaml"), [], hostfile=hostfile.with_name("none"), processes=None)


def test_threads_are_shared_out_and_the_environment_of_the_user_wins(
    no_gpu: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    show = "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['DS_ACCELERATOR'], os.environ['PATH'])"
    assert start.run([sys.executable, "-c", show], 2) == 0
    threads, accelerator, path = capfd.readouterr().out.split(maxsplit=2)
    assert (threads, accelerator) == ("4", "cpu")
    assert path.startswith(str(Path(sys.executable).parent))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    start.run([sys.executable, "-c", show], 2)
    assert capfd.readouterr().out.startswith("1 cpu")


def test_the_exit_code_is_the_childs() -> None:
    assert start.run([sys.executable, "-c", "raise SystemExit(17)"], 1) == 17


def test_ctrl_c_is_passed_on_and_the_child_is_awaited(tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    child = (
        "import time, pathlib\n"
        "try: print('up', flush=True); time.sleep(60)\n"
        f"except KeyboardInterrupt: time.sleep(0.3); pathlib.Path({str(ended)!r}).touch()"
    )
    parent = f"import sys; from launcher import start; start.run([sys.executable, '-c', {child!r}], 1)"
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
    assert ended.exists()


@pytest.mark.slow
def test_a_wrong_recipe_ends_every_rank_with_one_sentence_and_code_2(tmp_path: Path) -> None:
    """Through the real deepspeed runner: the exit code of a rank is the exit code of the command."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("kind: train\n")
    arguments = start.command(recipe, ["data.sed=1"], hostfile=None, processes=2)
    done = subprocess.run(arguments, env=start._environment(2), capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "override 'data.sed=1': data.sed: unknown key (nearest: seed)" in done.stderr
