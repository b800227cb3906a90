"""Batch scripts: no value becomes a command, and what the script does when SLURM tells it something."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import slurm
from cluster.slurm import Job, batch_script

JOB = Job(
    name="stage1", command=["true"], goes_on=[75, 143], written_by="blsp submit", work_folder=Path("/"),
    log="/tmp/%j.log", warning_s=300, options={"nodes": "2", "exclusive": None},
)  # fmt: skip
HOSTILE = ["$(touch owned)", "`touch owned`", "; touch owned", "' ; touch owned '", '" ; touch owned "', "a\\", "# x"]


def word_of_sbatch(text: str) -> str:
    """The first word of an #SBATCH line, read as `_get_argument` of SLURM's src/sbatch/opt.c reads it."""
    word, quote, position = "", "", 0
    while position < len(text) and (quote or not text[position].isspace()):
        char = text[position]
        if char == "\\":
            position += 1
            word += text[position]
        elif char == quote:
            quote = ""
        elif not quote and char in "\"'":
            quote = char
        elif not quote and char == "#":
            break
        else:
            word += char
        position += 1
    return word


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]


@settings(max_examples=40)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]) | st.just(" "), min_size=1))
def test_a_value_reaches_sbatch_and_the_shell_as_it_is(value: str) -> None:
    script = batch_script(replace(JOB, options={"comment": value}, command=["echo", value], modules=[value]))
    assert word_of_sbatch(directives(script)[-1]) == f"--comment={value}"
    assert [shlex.split(line)[2] for line in script.splitlines() if line.startswith("module ")] == [value]
    assert shlex.split(next(line for line in script.splitlines() if line.startswith("echo ")))[:2] == ["echo", value]


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\x00b", "a\x1b[2J", "a\u2028b"])
@pytest.mark.parametrize("where", ["name", "written_by", "options", "command", "modules"])
def test_what_would_begin_a_new_line_is_refused(where: str, value: str) -> None:
    values = {"options": {"partition": value}, "command": ["true", value], "modules": [value]}
    with pytest.raises(ValueError, match="no line breaks and no control characters"):
        batch_script(replace(JOB, **{where: values.get(where, value)}))


def test_hostile_values_run_nothing(tmp_path: Path) -> None:
    script = batch_script(
        replace(
            JOB, name=HOSTILE[0], command=["printf", "%s\\n", *HOSTILE], written_by=" ".join(HOSTILE),
            options={f"option-{i}": value for i, value in enumerate(HOSTILE)},
        )
    )  # fmt: skip
    done = subprocess.run(["bash"], input=script, cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout.splitlines(), done.stderr, done.returncode) == (HOSTILE, "", 0)
    assert list(tmp_path.iterdir()) == []


def test_the_path_of_a_log_is_no_pattern() -> None:
    assert slurm.literal(Path("/runs/50%j")) == "/runs/50%%j"
    with pytest.raises(ValueError, match="no backslash"):
        slurm.literal(Path("/runs/a\\b"))


def told(
    tmp_path: Path, number: signal.Signals, state: str, code: int, checkpoints: Path | None = None, away: int = 0
) -> tuple[int, list[str]]:
    """Exit code of a batch script whose job is in `state` when a signal comes and the command ends with `code`; and
    what was asked of scontrol. The first `away` calls of both commands find no controller."""
    asked = tmp_path / "asked"
    for name, does in (("squeue", f"echo {state}"), ("scontrol", f'echo "$@" >> {asked}'), ("sleep", "true")):
        if away and name != "sleep":
            calls = tmp_path / f"{name}.calls"
            does = f"echo >> {calls}\nif [ $(wc -l < {calls}) -le {away} ]; then exit 1; fi\n{does}"
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    ends = (
        "import signal, sys, time\n"
        f"signal.signal(15, lambda *_: (time.sleep(0.2), sys.exit({code})))\n"
        "print('up', flush=True)\n"
        "time.sleep(60)"
    )
    script = batch_script(replace(JOB, command=[sys.executable, "-Sc", f"exec({ends!r})"], checkpoints=checkpoints))
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711"}
    with subprocess.Popen(["bash", "-c", script], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)  # the walltime itself, while it still saves
    return process.returncode, asked.read_text().splitlines() if asked.exists() else []


@pytest.mark.parametrize(
    ("number", "state", "code"), [(signal.SIGUSR1, "RUNNING", 75), (signal.SIGTERM, "SIGNALING", 143)]
)
def test_a_job_that_was_told_to_stop_and_has_saved_queues_again(
    tmp_path: Path, number: signal.Signals, state: str, code: int
) -> None:
    assert told(tmp_path, number, state, code) == (code, ["requeue 4711"])


def test_a_controller_that_is_away_for_a_moment_is_asked_again(tmp_path: Path) -> None:
    assert told(tmp_path, signal.SIGUSR1, "RUNNING", 75, away=2) == (75, ["requeue 4711"])


@pytest.mark.parametrize(("state", "code"), [("COMPLETING", 75), ("RUNNING", 7), ("RUNNING", 0)])
def test_a_job_that_was_cancelled_or_failed_or_is_done_does_not(tmp_path: Path, state: str, code: int) -> None:
    assert told(tmp_path, signal.SIGTERM, state, code) == (code, [])


@pytest.mark.slow
def test_a_job_that_gets_nowhere_in_three_restarts_queues_no_more(tmp_path: Path) -> None:
    (tmp_path / "a run" / "slurm").mkdir(parents=True)
    checkpoints = tmp_path / "a run" / "checkpoints"

    def codes(times: int) -> list[int]:
        return [told(tmp_path, signal.SIGTERM, "RUNNING", 75, checkpoints)[0] for _ in range(times)]

    assert codes(3) == [75] * 3
    (checkpoints / "step-000002").mkdir(parents=True)
    assert codes(4) == [75] * 3 + [4]
    (checkpoints / "step-000010").mkdir()
    assert codes(1) == [75], "somebody has mended it"


def test_a_job_that_is_told_to_stop_while_it_loads_its_modules_does_not_begin(tmp_path: Path) -> None:
    for name, does in (
        ("module", "echo up; sleep 0.3"),
        ("squeue", "echo RUNNING"),
        ("scontrol", f"touch {tmp_path}/$1"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    script = batch_script(replace(JOB, command=["sleep", "20"], modules=["cuda"]))
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711"}
    with subprocess.Popen(["bash", "-c", script], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGUSR1)
    assert (process.returncode, (tmp_path / "requeue").exists()) == (143, True)


@pytest.mark.parametrize("answer", ["4711\n", "4711;north\n", "Welcome to cluster 9!\n4711\n"])
def test_the_number_of_the_job_is_read_from_sbatchs_answer(answer: str) -> None:
    assert slurm.job_number(answer) == 4711


def test_an_answer_without_a_number_is_shown() -> None:
    with pytest.raises(OSError, match="gave no job number but 'Submitted batch job'"):
        slurm.job_number("Submitted batch job")


def test_sbatchs_reason_becomes_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match="no `sbatch` on this host; submit from a login node"):
        slurm.submit(tmp_path / "job.sh")
    fake = tmp_path / "sbatch"
    fake.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: x' >&2\nexit 1\n")
    fake.chmod(0o755)
    with pytest.raises(ValueError, match=r"SLURM refused it: invalid partition specified: x$"):
        slurm.submit(tmp_path / "job.sh")


def test_outside_of_a_job_there_is_no_allocation() -> None:
    with pytest.raises(ValueError, match="no SLURM job"):
        slurm.allocated_hosts({})
