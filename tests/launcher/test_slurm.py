"""`blsp submit` on a real SLURM: shards, then training over two hosts, through everything that can stop a job."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from tests.launcher.tiny_recipe import losses, write_recipe
from tests.testbed.hosts import CHECKOUT
from tests.testbed.slurm import Slurm

pytestmark = pytest.mark.slow
STEPS = 48
ENVIRONMENT = {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
BLSP = [sys.executable, "-m", "launcher"]


@dataclass
class Trained:
    """What an undisturbed run of two processes on one host leaves."""

    recipe: Path
    losses: list[float]
    weights: bytes


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a name that a script has to quote."""
    folder = tmp_path_factory.mktemp("slurm") / "a person's 50%j $(work)"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def undisturbed(work: Path, tokenizer: PreTrainedTokenizerFast, slurm_on_two_hosts: Slurm) -> Trained:
    engine = {"checkpoint_every_steps": 4, "log_every_steps": 1}
    recipe = write_recipe(work, tokenizer, steps=STEPS, engine=engine)
    command = [*BLSP, "train", str(recipe), f"run={work / 'one-host'}", "--processes", "2"]
    done = slurm_on_two_hosts.bed.login.run(command, cwd=work, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
    run = work / "one-host"
    assert len(losses(run)) == STEPS
    return Trained(recipe, losses(run), (run / "export" / "model.safetensors").read_bytes())


def submit(slurm: Slurm, work: Path, *arguments: str) -> int:
    done = slurm.bed.login.run([*BLSP, "submit", *arguments], cwd=work, env={**slurm.env, **ENVIRONMENT})
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def log(run: Path, job: int) -> str:
    path = run / "slurm" / f"{job}.log"
    return path.read_text() if path.exists() else ""


def test_two_hosts_of_a_job_train_as_two_processes_on_one_host(work: Path, slurm: Slurm, undisturbed: Trained) -> None:
    run = work / "two-hosts"
    job = submit(slurm, work, str(undisturbed.recipe), f"run={run}", "--nodes", "2", "--time", "0:20:00")
    assert slurm.wait_for(job, "COMPLETED", "FAILED") == "COMPLETED", log(run, job)
    assert losses(run) == undisturbed.losses
    assert (run / "export" / "model.safetensors").read_bytes() == undisturbed.weights


def test_jobs_wait_for_each_other_and_one_behind_a_failure_is_never_run(work: Path, slurm: Slurm) -> None:
    recipe = {"kind": "shard", "manifests": ["none.jsonl"], "out": "none", "writer": {"llm": "none", "prompt": "reply"}}
    (work / "none.yaml").write_text(json.dumps(recipe))
    fails = submit(slurm, work, "none.yaml")
    behind = submit(slurm, work, "mini_stage1", "--after", str(fails))
    assert slurm.wait_for(fails, "FAILED", "COMPLETED") == "FAILED"
    assert "none.jsonl" in log(work / "none", fails)
    slurm.wait_for(behind, "CANCELLED")
    assert log(work / "runs" / "stage1", behind) == ""
