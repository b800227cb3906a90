"""`blsp launch --hostfile` on two hosts: what happens to it, and that it ends where an undisturbed run ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from blsp.recipe import TrainRecipe
from launcher import hosts
from launcher.recipe_files import load_kind
from tests.launcher.test_two_hosts import train_on_one_host
from tests.launcher.tiny_recipe import losses, write_recipe
from tests.testbed.hosts import CHECKOUT, HOME, SEARCHED, Bed, Host, ctrl_c

STEPS = 40
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # as fast as two on two cores, and nothing to wait for when others work too
SECRET = "s3cret"
HOSTILE = f"{SECRET} $(touch {HOME}/ran) `touch {HOME}/ran`; '\"\\ \n\ttouch {HOME}/ran\n\udcff"


class Launch:
    """`blsp launch` typed on a host; what it says is kept line by line."""

    def __init__(self, folder: Path, on: Host, recipe: Path, *more: str) -> None:
        self.run, self._said = folder / "run", folder / f"said-{time.monotonic_ns()}"
        arguments = ["launch", "--hostfile", str(folder / "hostfile"), str(recipe), *more]
        env = {"PATH": SEARCHED, "PYTHONPATH": str(CHECKOUT), "EVIL": HOSTILE, **ONE_THREAD}
        with self._said.open("w") as file:
            self.process = on.start([sys.executable, "-m", "launcher", *arguments], cwd=folder, env=env,
                                    stdout=file, stderr=file)  # fmt: skip

    def said(self) -> str:
        return self._said.read_text()

    def until(self, holds: Callable[[], bool], limit_s: float = 120) -> float:
        """Seconds until it holds."""
        began_s = time.monotonic()
        while not holds():
            assert time.monotonic() - began_s < limit_s, self.said()
            time.sleep(0.02)
        return time.monotonic() - began_s

    def until_said(self, words: str, limit_s: float = 120) -> float:
        return self.until(lambda: words in self.said(), limit_s)

    def until_trained(self, steps: int) -> int:
        """Until it has trained so many steps more than are logged now."""
        goal = done(self.run) + steps
        self.until(lambda: done(self.run) >= goal)
        return goal

    def ended(self, limit_s: float = 120) -> int:
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.said()) from None


def done(run: Path) -> int:
    log = run / "log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def ranks(host: Host) -> list[int]:
    """Pids, as the machine counts."""
    return [pid for pid, line in host.processes().items() if "launcher.train" in line]


def nothing_runs(hosts: Sequence[Host]) -> bool:
    return not any(host.processes() for host in hosts)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A run of two ranks on one host has followed it, into `one-host` beside it."""
    folder = tmp_path_factory.mktemp("recipe")
    path = write_recipe(folder, tokenizer, steps=STEPS, engine={"checkpoint_every_steps": 4, "log_every_steps": 1})
    train_on_one_host(path, 2, f"run={folder / 'one-host'}", **ONE_THREAD)
    return path


@pytest.mark.slow
def test_a_killed_rank_a_cut_network_ctrl_c_and_a_lost_coordinator_leave_no_trace_in_what_is_learnt(
    tmp_path: Path, recipe: Path, bed: Bed
) -> None:
    first, second = bed.nodes
    (tmp_path / "hostfile").write_text("node1 slots=1\nnode2 slots=1\n")
    override = f"run={tmp_path / 'run'}"
    launch = Launch(tmp_path, first, recipe, override)

    launch.until_trained(3)
    (rank,) = ranks(second)
    found = dict(entry.split(b"=", 1) for entry in Path(f"/proc/{rank}/environ").read_bytes().split(b"\0") if entry)
    assert found[b"EVIL"] == os.fsencode(HOSTILE)
    assert found[b"GLOO_SOCKET_IFNAME"] == b"eth0"
    assert not any(SECRET in line for host in bed.nodes for line in host.processes().values())
    os.kill(rank, signal.SIGKILL)
    launch.until_said("rank 1 on node2 was ended by SIGKILL", 5)

    launch.until_trained(3)
    second.unplug()
    noticed_s = launch.until_said("host node2 is lost", 25)
    print(f"a cut network was noticed after {noticed_s:.1f} s")
    assert noticed_s < 20  # 8 s, and what a busy machine adds
    assert launch.until(lambda: nothing_runs([second]), 20) < 20
    bed.mend()

    launch.until_trained(3)
    ctrl_c(launch.process)
    assert launch.ended() == 130
    assert "the same command goes on from there" in launch.said()
    launch.until(lambda: nothing_runs(bed.nodes), 5)
    assert done(launch.run) < STEPS

    again = Launch(tmp_path, first, recipe, override)
    again.until_trained(3)
    first.power_off()  # with the coordinator
    assert again.until(lambda: nothing_runs([second]), 20) < 20
    bed.mend()

    again = Launch(tmp_path, first, recipe, override)
    assert again.ended() == 0, again.said()
    assert losses(again.run) == losses(recipe.parent / "one-host")
    assert (again.run / "export" / "model.safetensors").is_file()
    assert nothing_runs(bed.nodes)
    assert not (bed.home / "ran").exists()


@pytest.mark.slow
def test_without_a_host_that_is_gone_for_good_the_others_end_the_run_if_they_may(
    tmp_path: Path, recipe: Path, bed: Bed
) -> None:
    (tmp_path / "hostfile").write_text("node1 slots=1\nnode2 slots=1\n")
    more = [f"run={tmp_path / 'run'}", "supervision.host_timeout_s=1"]
    launch = Launch(tmp_path, bed.login, recipe, *more, "--min-hosts", "1")
    launch.until_trained(6)
    bed.nodes[0].power_off()  # where the ranks meet, and who owns the run folder
    noticed_s = launch.until_said("host node1 is lost", 25)
    print(f"a host without power was noticed after {noticed_s:.1f} s")
    assert noticed_s < 20  # 8 s, and what a busy machine adds
    launch.until_said("going on with 1 of 2 hosts")
    assert launch.ended() == 0, launch.said()
    assert "waiting up to 30 s for a sign of life" not in launch.said()
    assert losses(launch.run) == pytest.approx(losses(recipe.parent / "one-host"), rel=1e-5)
    assert not bed.nodes[1].processes()

    refused = Launch(tmp_path, bed.login, recipe, *more)
    assert refused.ended() == 1
    assert "host node1 cannot be reached" in refused.said()
    assert "does `ssh -o BatchMode=yes node1 true` work?" in refused.said()


def test_a_hostfile_that_is_missing_or_too_short_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "h"

    def said(min_hosts: int | None = None) -> str:
        recipe = load_kind(TrainRecipe, "mini_stage1", [])
        with pytest.raises(ValueError) as refused:
            hosts.train(recipe, Path("mini_stage1"), [], hostfile=path, min_hosts=min_hosts, debug=False)
        return str(refused.value)

    assert said() == f"{path}: there is no such hostfile; hostfile.example explains every line"
    path.write_text("a slots=1\n-oProxyCommand=x slots=1\n")
    assert said().startswith(f"{path}:2: '-oProxyCommand=x' is not a host name")
    path.write_text("a slots=1\n")
    assert said(min_hosts=2) == f"--min-hosts 2: {path} names only 1"
