"""`blsp train`: the ranks of a run on this host, under a coordinator that watches them and starts them again."""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from blsp.checkpoint_folder import committed
from blsp.recipe import TrainRecipe
from cluster.agent_link import Place, here
from cluster.supervise import Job, Limits, supervise
from launcher.quiet import has_gpu, num_gpus


def train(recipe: TrainRecipe, config: Path, overrides: Sequence[str], *, processes: int | None, debug: bool) -> int:
    """Runs to the end of the training and returns its exit code. `processes`: one per GPU, or one where there is none.

    Ctrl-C, SIGTERM, SIGUSR1 and the end of the terminal let the ranks save and end; a second one ends them at once.
    """
    again = ["blsp", "train", str(config), *overrides, *(["--processes", str(processes)] if processes else [])]
    return supervise(job(recipe, config, overrides, shlex.join(again), debug), [place(processes)], limits(recipe))


def place(processes: int | None = None) -> Place:
    """This host. `processes`: one per GPU, or one where there is none."""
    number = processes or num_gpus() or 1
    return here(socket.gethostname(), number, environment(number))


def job(recipe: TrainRecipe, config: Path, overrides: Sequence[str], resume: str, debug: bool) -> Job:
    """What every rank runs, wherever it is."""
    arguments = ["--config", str(config), *overrides, *(["--debug"] if debug else [])]
    return Job(
        argv=(sys.executable, "-u", "-m", "launcher.train", *arguments),
        folder=Path.cwd(),
        run=recipe.run,
        resume=resume,
        progress=lambda: max(committed(recipe.run / "checkpoints"), default=None),
    )


def limits(recipe: TrainRecipe) -> Limits:
    """What the recipe says of hanging and restarts."""
    return Limits(**recipe.supervision.model_dump())


def environment(processes: int) -> dict[str, str]:
    """What a training process finds in its environment beside, or in place of, what is in ours."""
    # DeepSpeed looks for its build tools on PATH, and a virtual environment need not be activated.
    found = {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])}
    if not has_gpu():
        threads = max(1, len(os.sched_getaffinity(0)) // processes)
        for name, value in (("DS_ACCELERATOR", "cpu"), ("OMP_NUM_THREADS", str(threads))):
            found[name] = os.environ.get(name, value)
    return found
