"""Training over two hosts with DeepSpeed's own command, from the first key on, as docs/cluster.md has it typed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from cluster.ports import free_port
from tests.launcher import page
from tests.launcher.tiny_recipe import losses, write_page_recipes, write_recipe
from tests.testbed.hosts import CHECKOUT, Bed, Host, ctrl_c

pytestmark = pytest.mark.slow
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


def train_on_one_host(recipe: Path, ranks: int, override: str, **env: str) -> None:
    """So many processes on this machine, without any launcher, in the folder of the recipe."""
    shared = {
        **os.environ,
        "PYTHONPATH": str(CHECKOUT),
        **env,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(ranks),
    }
    started = [
        subprocess.Popen([sys.executable, "-m", "launcher.train", "--config", str(recipe), override], cwd=recipe.parent,
                         env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(ranks)
    ]  # fmt: skip
    assert [process.wait(300) for process in started] == [0] * ranks


@pytest.fixture
def fresh_ssh(bed: Bed) -> Iterator[None]:
    """Nobody has used ssh yet: no keys, no known hosts."""
    theirs = (bed.home / ".ssh").rename(bed.home / ".ssh-of-the-bed")
    yield
    shutil.rmtree(bed.home / ".ssh", ignore_errors=True)
    theirs.rename(bed.home / ".ssh")


@contextmanager
def own_host_key(host: Host) -> Iterator[None]:
    """The key by which the host is known lies where sshd of a distribution has its own."""
    lay = "mount -t tmpfs tmpfs /etc/ssh && cp /run/bed/host_key.pub /etc/ssh/ssh_host_ed25519_key.pub"
    host.run(["sh", "-c", lay], check=True)
    try:
        yield
    finally:
        host.run(["umount", "/etc/ssh"], check=True)


@pytest.mark.usefixtures("fresh_ssh")
def test_what_the_page_says_takes_two_fresh_machines_to_a_training_run(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, bed: Bed
) -> None:
    """Losses equal one host's, a start goes on from a checkpoint, and TensorBoard shows it where the person sits."""
    (tmp_path / "shards").mkdir()
    write_page_recipes(tmp_path, tokenizer).rename(tmp_path / "shards" / "asr")
    activate = page.said(". .venv/bin/activate")
    first_lines = page.typed("From two fresh machines to a training run")
    name_them = first_lines.index(next(line for line in first_lines if line.endswith("> hostfile")))
    to_ssh, (*training, board, tunnel) = first_lines[: name_them + 1], first_lines[name_them + 1 :]
    run = tmp_path / "runs" / "stage1"

    def type_in(line: str) -> str:
        env = {"PYTHONPATH": str(CHECKOUT)}
        ended = bed.nodes[0].run(["bash", "-c", f"{activate}\n{line}"], cwd=tmp_path, env=env)
        # The doctor's own tests judge it; here it may find something about the machine that the test runs on.
        assert ended.returncode == 0 or line.startswith("blsp doctor"), (line, ended.stdout + ended.stderr)
        return ended.stdout + ended.stderr

    for line in to_ssh:
        said = type_in(line)
        assert "hostname" not in line or said.startswith("node")
    assert "already exist on the remote system" in type_in(page.said("ssh-copy-id node2"))  # the home is shared
    believed = type_in("ssh-keygen -lf ~/.ssh/known_hosts").split()
    with own_host_key(bed.nodes[0]):
        assert type_in(page.said("ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub")).split()[1] in believed
    train_on_one_host(tmp_path / "stage1.yaml", 2, "run=one-host")
    expected = losses(tmp_path / "one-host")
    assert len(expected) == 4
    for line in training:
        if line.startswith("blsp launch"):  # DeepSpeed's command has just trained all of it
            assert losses(run) == expected
            shutil.rmtree(run / "checkpoints" / "step-000004")
            shutil.rmtree(run / "export")
        said = type_in(line)
    assert "going on from runs/stage1/checkpoints/step-000002" in said
    assert losses(run) == expected
    assert (run / "export" / "model.safetensors").is_file()

    assert board.startswith("tensorboard ") and tunnel.startswith("ssh -N ")
    serving = bed.nodes[0].start(["bash", "-c", f"{activate}\nexec {board}"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    forwarding = bed.login.start(tunnel.split())
    ask = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:6006/data/runs').read())"
    until_s = time.monotonic() + 90
    while "stage1" not in (answer := bed.login.run([sys.executable, "-c", ask])).stdout:
        assert time.monotonic() < until_s, answer.stderr
        time.sleep(0.5)
    for server in (serving, forwarding):
        ctrl_c(server, signal.SIGTERM)
        server.wait(20)


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
