"""`blsp submit` on a real SLURM: shards, then training over two hosts, through everything that can stop a job."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from transformers import PreTrainedTokenizerFast

from blsp.checkpoint_folder import committed, step_of
from tests.launcher import page
from tests.launcher.tiny_recipe import losses, write_page_recipes, write_recipe
from tests.testbed.hosts import CHECKOUT, Host
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


def shell(slurm: Slurm, work: Path, lines: str) -> str:
    """What lines that a person types on `login` print."""
    done = slurm.bed.login.run(["bash", "-ec", lines], cwd=work, env={**slurm.env, **ENVIRONMENT})
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def log(run: Path, job: int) -> str:
    path = run / "slurm" / f"{job}.log"
    return path.read_text() if path.exists() else ""


def last_step(run: Path) -> int:
    """That the run's log tells of."""
    path = run / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


@contextmanager
def standing_still(slurm: Slurm, run: Path, step: int) -> Iterator[list[psutil.Process]]:
    """From that step on no rank of the run gets any further, while the block runs."""
    slurm.wait(lambda: last_step(run) >= step, f"{run} is in step {step}", 120, every_s=0.02)
    ranks = [process for process in psutil.process_iter() if is_rank(process, run)]
    assert len(ranks) == 2
    for rank in ranks:
        rank.send_signal(signal.SIGSTOP)
    assert step <= last_step(run) < STEPS
    try:
        yield ranks
    finally:
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):
                rank.send_signal(signal.SIGCONT)


def halted(run: Path) -> list[psutil.Process]:
    """The `blsp launch` of a run, which goes no further."""
    found = [process for process in psutil.process_iter() if is_launch(process, run)]
    for process in found:
        process.suspend()
    return found


def is_launch(process: psutil.Process, run: Path) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return words[1:4] == ["-m", "launcher", "launch"] and f"run={run}" in words


def is_rank(process: psutil.Process, run: Path) -> bool:
    try:
        return "launcher.train" in process.cmdline() and f"run={run}" in process.cmdline()
    except psutil.Error:
        return False


def test_jobs_wait_for_each_other_and_one_behind_a_failure_is_never_run(work: Path, slurm: Slurm) -> None:
    recipe = {"kind": "shard", "manifests": ["none.jsonl"], "out": "none", "writer": {"llm": "none", "prompt": "reply"}}
    (work / "none.yaml").write_text(json.dumps(recipe))
    fails = submit(slurm, work, "none.yaml")
    behind = submit(slurm, work, "mini_stage1", "--after", str(fails))
    assert slurm.wait_for(fails, "FAILED", "COMPLETED") == "FAILED"
    assert "none.jsonl" in log(work / "none", fails)
    slurm.wait_for(behind, "CANCELLED")
    assert log(work / "runs" / "stage1", behind) == ""


def test_what_is_asked_for_reaches_slurm_and_what_it_does_not_have_is_refused_with_its_reason(
    work: Path, slurm: Slurm
) -> None:
    asked = [*BLSP, "submit", "mini_stage1", "--nodes", "2", "--time", "0:20:00", "--sbatch=--exclusive"]
    for gpus, tasks_per in ((2, "node"), (2, "gpu"), (3, "gpu")):
        gres = ["--gres", f"gpu:{gpus}", "--tasks-per", tasks_per]
        script = shell(slurm, work, shlex.join([*asked, *gres, "--dry-run"]))
        (work / "asked.sh").write_text(script)
        judged = slurm.ask("sh", "-c", f"sbatch --test-only {shlex.quote(str(work / 'asked.sh'))} 2>&1 || true")
        expected = "to start at" if gpus == 2 else "Requested node configuration is not available"
        assert expected in judged
    refused = slurm.bed.login.run([*asked, "--gres", "gpu:3"], cwd=work, env={**slurm.env, **ENVIRONMENT})
    assert refused.returncode == 2
    assert "SLURM refused it: Batch job submission failed: Requested node configuration" in refused.stderr


def test_a_job_on_two_hosts_goes_on_after_its_walltime_a_preemption_and_the_loss_of_each_host(
    work: Path, slurm: Slurm, undisturbed: Trained
) -> None:
    run, recipe = work / "two-hosts", work / "edited.yaml"
    recipe.write_bytes(undisturbed.recipe.read_bytes())
    job = submit(slurm, work, recipe.name, f"run={run}", "--nodes", "2", "--time", "0:20:00", "--warning-s", "10")
    recipe.write_text("edited: while the job waits")

    def told() -> int:
        return log(run, job).count("SLURM asks to stop")

    with standing_still(slurm, run, 4):
        assert slurm.ask("scontrol", "update", f"JobId={job}", "TimeLimit=1") == ""
        slurm.wait(lambda: told() == 1, "SLURM has told of the walltime", 60)
    slurm.wait_for(job, "PENDING", limit_s=30)
    assert slurm.ask("scontrol", "update", f"JobId={job}", "TimeLimit=20") == ""
    with standing_still(slurm, run, 14) as ranks:
        urgent = slurm.bed.login.start(["srun", "-p", "high", "--exclusive", "-N1", "sleep", "1"], env=slurm.env)
        slurm.wait(lambda: not all(map(stands, ranks)), "SLURM has woken them to tell them", 30)
    slurm.wait_for(job, "PENDING", limit_s=30)
    assert urgent.wait(30) == 0
    for step, node in ((24, slurm.bed.nodes[1]), (34, slurm.bed.nodes[0])):  # the second one runs the batch script
        with standing_still(slurm, run, step) as ranks:
            node.power_off()
            slurm.wait_for(job, "PENDING", limit_s=60)
            slurm.wait(lambda: not any(map(lives, ranks)), "the ranks of the other host have ended", 15)
        slurm.mend_hosts()
    assert slurm.wait_for(job, "COMPLETED", "FAILED") == "COMPLETED", log(run, job)
    assert slurm.ask("squeue", "-h", "-t", "all", "-j", str(job), "-O", "restartcnt") == "4"
    assert losses(run) == undisturbed.losses
    assert (run / "export" / "model.safetensors").read_bytes() == undisturbed.weights


def test_a_job_goes_on_elsewhere_while_its_lost_copy_still_runs(work: Path, slurm: Slurm, undisturbed: Trained) -> None:
    """slurmd is killed, and its host comes to a halt; when its ranks go on, another host has long had their job. What
    was asked for is there: both GPUs, and cores for each."""
    run = work / "moved"
    per_gpu = ["--gres", "gpu:2", "--tasks-per", "gpu", "--sbatch=--cpus-per-task=3"]
    job = submit(slurm, work, str(undisturbed.recipe), f"run={run}", *per_gpu, "--time", "0:20:00")
    with standing_still(slurm, run, 8) as lost:
        assert "CPUs=6 Tasks=1" in slurm.ask("scontrol", "show", "step", f"{job}.0"), "of both GPUs' tasks"
        assert {rank.environ()["CUDA_VISIBLE_DEVICES"] for rank in lost} == {"0,1"}
        first = next(node for node in slurm.bed.nodes if slurm.on(job) == node.name)
        slurm.kill_slurmd(first)
        # srun hears that the host is lost, and coordinator and agent miss each other: either would end the ranks.
        watching = [
            psutil.Process(pid) for pid, line in first.processes().items()
            if "cluster.agent" in line or "launcher launch" in line
        ]  # fmt: skip
        assert len(watching) >= 3
        for process in watching:
            process.suspend()
        slurm.wait_for(job, "PENDING", limit_s=60)
        slurm.wait(lambda: last_step(run) > 16, "the job goes on", 60)
        assert slurm.on(job) not in ("", first.name)
        assert all(lives(rank) for rank in lost)
    slurm.wait(lambda: not any(lives(rank) for rank in lost), "the lost copy has ended by itself", 60)
    for process in watching:
        process.resume()
    assert slurm.wait_for(job, "COMPLETED", "FAILED") == "COMPLETED", log(run, job)
    assert "which writes no more from now on" in log(run, job)
    assert losses(run) == undisturbed.losses
    assert (run / "export" / "model.safetensors").read_bytes() == undisturbed.weights


def test_a_job_outlives_an_absent_controller_and_being_held_and_leaves_nothing_when_it_is_cancelled(
    work: Path, slurm: Slurm, undisturbed: Trained
) -> None:
    run = work / "cancelled"
    job = submit(slurm, work, str(undisturbed.recipe), f"run={run}", "--nodes", "2", "--time", "0:20:00")

    def type_in(command: str) -> str:
        return shell(slurm, work, page.said(command, {b: v for b, v in blanks.items() if b in command}))

    blanks = {"JOB": job, "RUN": shlex.quote(str(run))}
    slurm.wait(lambda: last_step(run) >= 6, "some steps are done", 120)
    type_in("scancel --batch --signal=USR1 JOB")
    slurm.wait_for(job, "PENDING", limit_s=30)
    saved = step_of(committed(run / "checkpoints")[-1])
    type_in("scontrol hold JOB")
    assert saved == last_step(run) < STEPS
    time.sleep(8)  # by now it would have begun again
    assert slurm.state(job) == "PENDING"
    type_in("scontrol release JOB")
    waiting: list[psutil.Process] = []  # the job's `blsp launch`, before it asks for its hosts
    slurm.wait(lambda: bool(waiting.extend(halted(run)) or waiting), "the job has begun", 30, every_s=0.05)
    slurm.stop_controller()
    waiting[0].resume()
    slurm.wait(lambda: "cannot be reached (srun ended" in log(run, job), "no agent is started", 30)
    slurm.mend_hosts()
    with standing_still(slurm, run, saved + 3):
        type_in("scancel JOB")
        assert slurm.wait_for(job, "CANCELLED", "COMPLETED", limit_s=5) == "CANCELLED"
    slurm.wait(lambda: not any(works_for_a_job(host) for host in slurm.bed.nodes), "no process is left", 15)
    assert saved < last_step(run) < STEPS
    again = int(type_in("sbatch RUN/slurm/JOB.sh").split()[-1])
    assert slurm.wait_for(again, "COMPLETED", "FAILED") == "COMPLETED", log(run, again)
    assert f"going on from {run}" in log(run, again)
    assert losses(run) == undisturbed.losses
    assert (run / "export" / "model.safetensors").read_bytes() == undisturbed.weights


def works_for_a_job(host: Host) -> list[str]:
    """The processes of a node that are no daemons."""
    return [line for line in host.processes().values() if line.split()[0] not in ("slurmd", "munged")]


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def stands(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False


def test_the_commands_of_the_page_write_shards_and_train_both_stages(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, slurm: Slurm
) -> None:
    write_page_recipes(tmp_path, tokenizer)
    *chain, dry_run = page.typed("SLURM")
    _, shards_alone = page.typed("Shards on many machines")
    activate = page.said(". .venv/bin/activate")

    def type_in(lines: str) -> str:
        return shell(slurm, tmp_path, f"{activate}\n{lines}")

    assert "--warning-s" in type_in(page.said("blsp submit --help"))
    asked = type_in(dry_run)
    assert asked.startswith("#!/bin/bash") and "#SBATCH --gres=gpu:8\n" in asked
    jobs = [int(line.split()[0]) for line in type_in("\n".join(chain)).splitlines() if line.split()[0].isdecimal()]
    assert len(jobs) == 3
    assert slurm.wait_for(max(jobs), "COMPLETED", "FAILED", "CANCELLED", limit_s=300) == "COMPLETED", [
        log(tmp_path / run, min(jobs) + index) for index, run in enumerate(("shards/asr", "runs/stage1", "runs/stage2"))
    ]
    exported = json.loads((tmp_path / "runs" / "stage2" / "export" / "config.json").read_text())
    assert [stage["steps"] for stage in exported["history"]] == [4], "it began where stage 1 had ended"
    assert (tmp_path / "runs" / "stage2" / "slurm" / f"{max(jobs)}.sh").is_file()
    written = sorted((tmp_path / "shards" / "asr").rglob("*.tar"))
    assert len(written) == 2
    before = [path.read_bytes() for path in written]
    for path in (tmp_path / "shards" / "asr").iterdir():
        path.rename(tmp_path / f"one-host-{path.name}")
    again = int(type_in(shards_alone))
    assert slurm.wait_for(again, "COMPLETED", "FAILED", limit_s=120) == "COMPLETED", log(tmp_path / "shards/asr", again)
    assert [path.read_bytes() for path in written] == before
