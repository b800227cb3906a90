"""Training over two hosts with DeepSpeed's own command, as the README types it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from cluster.ports import free_port
from tests.launcher.tiny_recipe import losses, write_recipe
from tests.testbed.hosts import CHECKOUT, Bed

pytestmark = pytest.mark.slow
DEEPSPEED = Path(sys.executable).with_name("deepspeed")
# Holds the run folder named on the command line, as the first rank of a training does, until it is told to end.
OWNER = """
import sys
from pathlib import Path
from cluster.owner import owned
with owned(Path(sys.argv[1])):
    print("on", flush=True)
    input()
"""
# Training where no lock reaches from one host to the other: only claims keep two apart.
WITHOUT_LOCKS = """
import contextlib, sys
from cluster import owner
from launcher import train
owner.folder_lock = contextlib.nullcontext
sys.exit(train.main())
"""


def train_on_one_host(recipe: Path, ranks: int, override: str) -> None:
    """Two processes on this machine, without any launcher."""
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    started = [
        subprocess.Popen([sys.executable, "-m", "launcher.train", "--config", str(recipe), override], cwd=CHECKOUT,
                         env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(ranks)
    ]  # fmt: skip
    assert [process.wait(300) for process in started] == [0] * ranks


def test_deepspeeds_command_trains_over_two_hosts_as_on_one_and_goes_on(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, bed: Bed
) -> None:
    recipe, run = write_recipe(tmp_path, tokenizer), tmp_path / "run"
    (tmp_path / "hostfile").write_text("node1 slots=1\nnode2 slots=1\n")
    train_on_one_host(recipe, 2, f"run={tmp_path / 'one-host'}")
    expected = losses(tmp_path / "one-host")
    assert len(expected) == 4
    command = [str(DEEPSPEED), "--hostfile", str(tmp_path / "hostfile"), "--module", "launcher.train",
               "--config", str(recipe)]  # fmt: skip

    def train() -> str:
        ended = bed.login.run(command)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert losses(run) == expected
        assert (run / "export" / "model.safetensors").is_file()
        return ended.stdout

    train()
    shutil.rmtree(run / "checkpoints" / "step-000004")
    shutil.rmtree(run / "export")
    assert f"going on from {run}/checkpoints/step-000002" in train()


def test_a_second_run_on_another_host_is_refused_with_locks_and_without(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, bed: Bed
) -> None:
    recipe, run = write_recipe(tmp_path, tokenizer), tmp_path / "run"
    first, second = bed.nodes
    owner = first.start([sys.executable, "-c", OWNER, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "on\n"
    refused = [
        second.start([sys.executable, *start, "--config", str(recipe)], stderr=subprocess.PIPE)
        for start in (["-m", "launcher.train"], ["-c", WITHOUT_LOCKS])
    ]
    for process in refused:
        said = process.communicate(timeout=200)[1]
        assert process.returncode == 2
        assert f"{run}: already in use by process " in said
        assert "on node1; wait for it, stop it, or choose another folder" in said
    owner.communicate("\n", timeout=20)
    assert owner.returncode == 0
