"""`blsp eval` over two real hosts, typed as docs/cluster.md has it: the rows are those of one process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from blsp.evaluate.result import read_result
from tests.blsp.tiny import make_loud_llm
from tests.blsp.tiny_evaluation import TEXTS, make_run, make_test_set, make_whisper
from tests.launcher import page
from tests.testbed.hosts import CHECKOUT, Bed
from tests.testbed.slurm import Slurm

pytestmark = pytest.mark.slow
ACTIVATE = f". {Path(sys.prefix) / 'bin' / 'activate'}\n"
ENVIRONMENT = {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(two_hosts: Bed, tokenizer: PreTrainedTokenizerFast) -> Path:
    """my_eval.yaml, with relative paths, and what one process made of it in `alone`."""
    folder = two_hosts.folder / "evaluating"
    (folder / "whisper").mkdir(parents=True)
    make_whisper(folder / "whisper")
    make_run(folder, make_loud_llm(tokenizer, folder / "llm"))
    words = " ".join(TEXTS).replace(".", "").split()
    make_test_set(folder, [" ".join(words[place : place + 2 + place % 4]) for place in range(6)])
    systems = [
        {"type": "text", "name": "text", "llm": "llm"},
        {"type": "cascade", "name": "cascade", "asr": "whisper", "llm": "llm"},
        {"type": "linear", "name": "linear", "train": "test.jsonl"},
        {"type": "speech", "name": "speech", "run": "stage2"},
    ]
    recipe: dict[str, Any] = {
        "kind": "eval", "manifest": "test.jsonl", "split": "train", "llm": "llm", "max_new_tokens": 6, "batch_size": 2,
        "out": "evaluation", "systems": systems,
    }  # fmt: skip
    (folder / "my_eval.yaml").write_text(json.dumps(recipe))
    (folder / "hostfile").write_text("node1 slots=1\nnode2 slots=1\n")
    command = [sys.executable, "-m", "launcher", "eval", "my_eval.yaml", "out=alone"]
    subprocess.run(command, cwd=folder, check=True)
    return folder


@pytest.fixture
def out(folder: Path) -> Iterator[Path]:
    """Where the recipe says; not there before and afterwards."""
    yield folder / "evaluation"
    (folder / "evaluation").rename(folder / f"evaluation-{time.monotonic_ns()}")


def rows(out: Path) -> bytes:
    read_result(out)  # whole
    return (out / "rows.jsonl").read_bytes()


def written(answers: Path) -> dict[Path, int]:
    """When each was; some may be on their way out, as all are in the end."""
    found = {}
    for path in answers.glob("*.json"):
        with suppress(FileNotFoundError):
            found[path] = path.stat().st_mtime_ns
    return found


def test_a_host_that_dies_costs_its_batches_and_the_others_answer_them(bed: Bed, folder: Path, out: Path) -> None:
    over_hosts, _ = page.typed("Evaluation on many machines")
    job = bed.login.start(["bash", "-c", ACTIVATE + over_hosts], cwd=folder, env=ENVIRONMENT,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    answers, until_s = out / "answers", time.monotonic() + 120
    at_work: set[str] = set()
    while len(list(answers.glob("*.json"))) < 10 or len(at_work) < 2:
        assert job.poll() is None and time.monotonic() < until_s, job.stdout and job.stdout.read()
        at_work |= {host.name for host in bed.nodes if any("_Actor" in line for line in host.processes().values())}
        time.sleep(0.05)
    bed.nodes[0].power_off()  # who asks, too
    before = written(answers)
    after = dict.fromkeys(before, 0)
    while job.poll() is None:
        after |= written(answers)
        time.sleep(0.05)
    assert job.stdout is not None
    said = job.stdout.read()
    assert job.returncode == 0, said
    assert "host node1 is lost" in said and "going on with 1 of 2 hosts" in said
    assert len(after) > len(before) and {path: after[path] for path in before} == before, "what it had was asked again"
    assert rows(out) == rows(folder / "alone")
    assert bed.nodes[1].processes() == {}


def test_a_slurm_job_of_two_hosts_writes_the_rows_of_one_process(slurm: Slurm, folder: Path, out: Path) -> None:
    _, as_a_job = page.typed("Evaluation on many machines")
    asked = slurm.bed.login.run(["bash", "-ec", ACTIVATE + as_a_job], cwd=folder, env={**slurm.env, **ENVIRONMENT})
    assert asked.returncode == 0, asked.stderr
    job, at_work = int(asked.stdout), set()
    until_s = time.monotonic() + 150
    while slurm.state(job) in ("PENDING", "RUNNING") and time.monotonic() < until_s:
        at_work |= {
            host.name for host in slurm.bed.nodes if any("_Actor" in line for line in host.processes().values())
        }
        time.sleep(0.2)
    said = (out / "slurm" / f"{job}.log").read_text()
    assert slurm.wait_for(job, "COMPLETED", "FAILED", limit_s=20) == "COMPLETED", said
    assert at_work == {"node1", "node2"}
    assert rows(out) == rows(folder / "alone")
