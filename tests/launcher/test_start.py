"""The `deepspeed` command line that `blsp train` runs, and what reaches the ranks through it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher import start
from launcher.errors import GOES_ON


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


# DeepSpeed's chain of processes: a runner, a launcher, and the ranks. Each rank says when it is up.
RANK = (
    "import pathlib, sys, time\n"
    "try: pathlib.Path(sys.argv[2]).touch(); time.sleep(60)\n"
    "except KeyboardInterrupt: time.sleep(0.3); pathlib.Path(sys.argv[2] + '.saved').touch(); sys.exit(130)"
)


def above(code: str, *arguments: str) -> str:
    """The code of a process that starts another with `code`, and ends as it ends."""
    return f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {code!r}, *{arguments!r}]))"


def stopped(arguments: list[str], up: Path, *signals: signal.Signals) -> tuple[int, str]:
    """Exit code and words of `start.run(arguments)` after signals, the first of them when the file `up` is there."""
    code = (
        "import sys; from launcher import errors, start\n"
        f"sys.exit(errors.exit_code_of(lambda: start.run({arguments!r}, 1), debug=False))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        while not up.exists():
            time.sleep(0.02)
        for number in signals:
            process.send_signal(number)
            time.sleep(0.5)  # two within a quarter of a second are one to Popen.wait
        _, said = process.communicate(timeout=30)
    return process.returncode, said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_reaches_the_ranks_and_their_end_is_awaited(tmp_path: Path, number: signal.Signals) -> None:
    up = tmp_path / "up"
    chain = above(above(RANK, "--local_rank=0", str(up)))
    assert stopped([sys.executable, "-c", chain], up, number) == (130, "")
    assert up.with_suffix(".saved").exists()


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    up = tmp_path / "up"
    deaf = "import pathlib, signal, sys, time; signal.signal(2, signal.SIG_IGN); pathlib.Path(sys.argv[2]).touch()\n"
    arguments = [sys.executable, "-c", above(deaf + "time.sleep(60)", "--local_rank=0", str(up))]
    began_s = time.monotonic()
    code, said = stopped(arguments, up, signal.SIGINT, signal.SIGINT)
    assert (code, said) == (130, f"blsp: stopped; {GOES_ON}\n")
    assert time.monotonic() - began_s < 20


def test_ctrl_c_before_there_are_ranks_ends_everything(tmp_path: Path) -> None:
    up = tmp_path / "up"
    starting = f"import pathlib, time; pathlib.Path({str(up)!r}).touch(); time.sleep(60)"
    assert stopped([sys.executable, "-c", above(starting)], up, signal.SIGINT) == (130, f"blsp: stopped; {GOES_ON}\n")


def test_a_rank_that_the_system_killed_is_named(tmp_path: Path) -> None:
    """DeepSpeed turns -9 into 247."""
    with pytest.raises(OSError, match=r"ended by SIGKILL; too little memory\?"):
        start.run([sys.executable, "-c", "raise SystemExit(-9)"], 1)


@pytest.mark.slow
def test_a_wrong_recipe_ends_every_rank_with_one_sentence_and_code_2(tmp_path: Path) -> None:
    """Through the real deepspeed runner: the exit code of a rank is the exit code of the command."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("kind: train\n")
    arguments = start.command(recipe, ["data.sed=1"], hostfile=None, processes=2)
    done = subprocess.run(arguments, env=start.environment(2), capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert "override 'data.sed=1': data.sed: unknown key (nearest: seed)" in lines
    assert len(lines) == len(set(lines)), "the other rank and DeepSpeed are silent"
    assert not any(word in done.stderr for word in ("Traceback", "ERROR"))
