"""Random faults over one run, which must end with the weights of an undisturbed one: `make soak`.

    python -m tests.bench.soak [--faults 50] [--seed 1] [--folder FOLDER]

Two ranks train a tiny model through `blsp train`, once undisturbed. Then again: at steps drawn from the seed something
is done to a rank, a reader, the agent, the coordinator or the newest checkpoint; whenever the command ends before the
training does, the same command is given again. Prints one line of JSON; exit code 1 when weights or logged losses are
not equal to the bit.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from cluster.exit_codes import ExitCode
from tests.conftest import make_tokenizer
from tests.launcher.tiny_recipe import losses, write_recipe

STEPS_PER_FAULT = 12
HANG_TIMEOUT_S = 6.0
_ATTEMPT_S = 120.0  # for a start to be followed by a step
# A command that was told to stop, ended at once, killed, or that gave up after three faults in a row.
_AGAIN = {ExitCode.STOPPED, ExitCode.CTRL_C, ExitCode.GIVEN_UP, 143, -signal.SIGKILL}


class Soak:
    """The disturbed run."""

    def __init__(self, recipe: Path, run: Path, seed: int) -> None:
        self.run = run
        self.draw = random.Random(seed)
        self._recipe = recipe
        self._said = run.parent / "said"
        self.commands = 0
        self.damaged: set[str] = set()
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self.commands += 1
        with self._said.open("ab") as said:
            return subprocess.Popen(
                [sys.executable, "-m", "launcher", "train", str(self._recipe), "--processes", "2", f"run={self.run}"],
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True,
            )  # fmt: skip

    def step(self) -> int:
        """The newest step in the log."""
        try:
            lines = (self.run / "log.jsonl").read_bytes().splitlines()
            return int(json.loads(lines[-1])["step"]) if lines else 0
        except (OSError, ValueError):
            return 0

    def go_on(self) -> bool:
        """Give the command again where it has ended too early. Returns whether the training is over."""
        code = self.process.poll()
        if code is None or code == ExitCode.DONE:
            return code == ExitCode.DONE
        if code not in _AGAIN:
            raise RuntimeError(f"exit code {code}:\n{self._said.read_text(errors='replace')[-4000:]}")
        self.process = self._start()
        return False

    def agents(self) -> list[psutil.Process]:
        return _below(self.process.pid, "cluster.agent")

    def ranks(self) -> list[psutil.Process]:
        return [rank for agent in self.agents() for rank in _below(agent.pid, "launcher.train")]

    def readers(self) -> list[psutil.Process]:
        return [reader for rank in self.ranks() for reader in rank.children()]

    def newest_checkpoint(self) -> list[Path]:
        """Its files, if there is another one that is whole: without any a run does not begin anew by itself."""
        found = sorted((self.run / "checkpoints").glob("step-*"))
        if len([path for path in found if path.name not in self.damaged]) < 2:
            return []
        self.damaged.add(found[-1].name)
        return sorted(path for path in found[-1].rglob("*") if path.is_file())


def _below(pid: int, module: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(pid).children():
        if module in process.cmdline():
            found.append(process)
    return sorted(found, key=lambda process: process.pid)


def _to_one(whom: Callable[[Soak], list[psutil.Process]], number: signal.Signals) -> Callable[[Soak], None]:
    return lambda soak: soak.draw.choice(whom(soak)).send_signal(number)


def _to_coordinator(*numbers: signal.Signals) -> Callable[[Soak], None]:
    def send(soak: Soak) -> None:
        for number in numbers:
            soak.process.send_signal(number)
            time.sleep(0.3)

    return send


def _damage(how: Callable[[Soak, Path], object]) -> Callable[[Soak], None]:
    """To a file of the newest checkpoint; then a rank is killed, so that it is needed."""

    def damage(soak: Soak) -> None:
        rank, files = soak.draw.choice(soak.ranks()), soak.newest_checkpoint()
        how(soak, soak.draw.choice(files))
        rank.kill()

    return damage


def _flip(soak: Soak, path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[soak.draw.randrange(len(content))] ^= 1 << soak.draw.randrange(8)
    path.write_bytes(content)


FAULTS: dict[str, Callable[[Soak], None]] = {
    "kill -9 of a rank": _to_one(Soak.ranks, signal.SIGKILL),
    "a rank hangs": _to_one(Soak.ranks, signal.SIGSTOP),
    "SIGTERM to a rank": _to_one(Soak.ranks, signal.SIGTERM),
    "SIGUSR1 to a rank": _to_one(Soak.ranks, signal.SIGUSR1),
    "kill -9 of a reader": _to_one(Soak.readers, signal.SIGKILL),
    "kill -9 of the agent": _to_one(Soak.agents, signal.SIGKILL),
    "kill -9 of the coordinator": _to_coordinator(signal.SIGKILL),
    "Ctrl-C": _to_coordinator(signal.SIGINT),
    "SIGUSR1 to the coordinator": _to_coordinator(signal.SIGUSR1),
    "Ctrl-C twice": _to_coordinator(signal.SIGINT, signal.SIGINT),
    "a bit of the newest checkpoint, and kill -9": _damage(_flip),
    "half a file of the newest checkpoint, and kill -9": _damage(
        lambda soak, path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    ),
    "a file of the newest checkpoint gone, and kill -9": _damage(lambda soak, path: path.unlink()),
}


def disturb(soak: Soak, targets: list[int]) -> Counter[str]:
    """One fault at each of the steps, or as soon after as there is something to disturb. Returns which."""
    done: Counter[str] = Counter()
    heard_s, before = time.monotonic(), -1
    while not soak.go_on():
        now = soak.step()
        if now != before:
            heard_s, before = time.monotonic(), now
        if time.monotonic() - heard_s > _ATTEMPT_S:
            raise RuntimeError(f"nothing since step {now}:\n{soak._said.read_text(errors='replace')[-4000:]}")
        if targets and now >= targets[0]:
            name = soak.draw.choice(sorted(FAULTS))
            try:
                FAULTS[name](soak)
            except (IndexError, psutil.NoSuchProcess, ProcessLookupError):
                pass  # nobody there just now: it is starting
            else:
                done[name] += 1
                del targets[0]
        time.sleep(0.02)
    return done


def soak(folder: Path, faults: int, seed: int) -> dict[str, Any]:
    """Both runs, and what came of it."""
    steps = faults * STEPS_PER_FAULT
    recipe = write_recipe(
        folder, make_tokenizer(), steps=steps,
        engine={"checkpoint_every_steps": 5, "keep_checkpoints": 3, "log_every_steps": 1},
        supervision={"restarts": 10**6, "hang_timeout_s": HANG_TIMEOUT_S},
    )  # fmt: skip
    command = [sys.executable, "-m", "launcher", "train", str(recipe), "--processes", "2"]
    began_s = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    undisturbed_s, began_s = time.monotonic() - began_s, time.monotonic()
    disturbed = Soak(recipe, folder / "disturbed", seed)
    done = disturb(disturbed, sorted(disturbed.draw.sample(range(2, steps - 2), faults)))
    disturbed_s = time.monotonic() - began_s
    log = [json.loads(line) for line in (disturbed.run / "log.jsonl").read_text().splitlines()]
    return {
        "seed": seed, "steps": steps, "faults": sum(done.values()), "by kind": dict(sorted(done.items())),
        "commands": disturbed.commands,
        "starts": len((disturbed.run / "launches.jsonl").read_text().splitlines()),
        "undisturbed_s": round(undisturbed_s), "disturbed_s": round(disturbed_s),
        "goodput": round(log[-1]["pace/goodput"], 3),
        "weights are equal": _weights(folder / "run") == _weights(disturbed.run),
        "losses are equal": losses(folder / "run") == losses(disturbed.run),
    }  # fmt: skip


def _weights(run: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted((run / "export").glob("*.safetensors")))


def main() -> int:
    """Returns 1 when the disturbed run is another one."""
    parser = argparse.ArgumentParser(prog="tests.bench.soak", description=__doc__)
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="kept, to be looked at; default: a temporary one")
    arguments = parser.parse_args()
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True)
        told = soak(arguments.folder, arguments.faults, arguments.seed)
    else:
        with tempfile.TemporaryDirectory(prefix="soak-") as folder:
            told = soak(Path(folder), arguments.faults, arguments.seed)
    print(json.dumps(told))
    return 0 if told["weights are equal"] and told["losses are equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
