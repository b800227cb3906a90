"""The section `slurm` of a recipe: what `blsp submit` asks SLURM for. Its options of the same names win."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from blsp.section import FilePath, Listed, Problem, Section
from cluster.slurm import EARLY_S

_NAMES = r"^[A-Za-z0-9_][A-Za-z0-9_.,@+-]*$"
_OURS = (
    "chdir", "dependency", "job-name", "kill-on-invalid-dep", "nodes", "no-requeue", "ntasks", "ntasks-per-node",
    "ntasks-per-gpu", "open-mode", "output", "error", "parsable", "requeue", "signal", "wait", "wrap",
)  # fmt: skip
_FENCES = ("gpu-bind", "gpus-per-task", "tres-per-task")  # every task has its own GPUs and sees no others


class SlurmSection(Section):
    """Null, wherever a field may be: SLURM's own default."""

    nodes: PositiveInt = Field(1, description="hosts of the job")
    processes: PositiveInt | None = Field(
        None, description="training processes on each host; null: one per GPU of the job, one where it has none"
    )
    tasks_per: Literal["node", "gpu"] = Field(
        "node",
        description="what counts as a task to SLURM (and --cpus-per-task gives it cores): a host, or each GPU of gres",
    )
    time: str | None = Field(
        None, pattern=r"^([0-9]+-)?[0-9]{1,2}:[0-5][0-9]:[0-5][0-9]$", description="walltime, as [days-]HH:MM:SS"
    )
    warning_s: PositiveInt = Field(
        300, description="the job is told so long before the walltime; it saves, and waits in the queue to go on"
    )
    partition: str | None = Field(None, pattern=_NAMES, description="one or several partitions, with commas")
    account: str | None = Field(None, pattern=_NAMES, description="the account that pays")
    qos: str | None = Field(None, pattern=_NAMES, description="a quality of service")
    constraint: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_.,:&|*()\[\]-]+$", description="features that the hosts must have, as 'a100&ib'"
    )
    gres: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:,/-]*$", description="devices on each host, as 'gpu:8'"
    )
    modules: Listed[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+/-]*$")]] = Field(
        (), description="environment modules that are loaded first, as 'cuda/12.8'"
    )
    container: FilePath | None = Field(
        None, description="Apptainer image that the training processes run in; null: this Python environment"
    )
    sbatch: Listed[Annotated[str, Field(pattern=r"^--[a-z][a-z-]*(=[^\x00-\x1f\x7f]+)?$")]] = Field(
        (), description="further options of sbatch, as '--cpus-per-task=64' or '--exclusive'"
    )

    def problems(self) -> Iterator[Problem]:
        if self.time is not None and _seconds(self.time) <= self.warning_s + EARLY_S:
            yield (
                ("time",),
                f"{self.time} is over almost before the job begins: it is told to stop up to {self.warning_s} + "
                f"{EARLY_S} s earlier; give it more, or lower warning_s",
            )
        if self.tasks_per == "gpu" and not self._tasks():
            yield ("tasks_per",), "'gpu' needs gres, as 'gpu:8', or processes, to know how many tasks a host has"
        for option in self.sbatch:
            name = option.partition("=")[0].removeprefix("--")
            if self.tasks_per == "gpu" and name in _FENCES:
                yield (
                    ("sbatch",),
                    f"--{name} keeps the GPUs of one host from each other; ask for them with slurm.gres",
                )
            elif name in type(self).model_fields:
                yield ("sbatch",), f"--{name} has a field of its own; set slurm.{name}"
            elif name in _OURS:
                yield ("sbatch",), f"--{name} is set by `blsp submit`, which needs it as it is; remove it"

    def _tasks(self) -> int:
        """On each host; 0 where nothing says."""
        if self.tasks_per == "node":
            return 1
        gpus = re.findall(r"(?:^|,)gpu(?::[^:,]*[^:,0-9][^:,]*)?(?::([0-9]+))?(?=,|$)", self.gres or "")
        return self.processes or sum(int(number or 1) for number in gpus)

    def options(self) -> dict[str, str | None]:
        """Of sbatch, by their long names; None for one without a value."""
        options: dict[str, str | None] = {"nodes": str(self.nodes), "ntasks-per-node": str(self._tasks())}
        for name in ("time", "partition", "account", "qos", "constraint", "gres"):
            if (value := getattr(self, name)) is not None:
                options[name] = value
        for option in self.sbatch:
            name, _, given = option.removeprefix("--").partition("=")
            options[name] = given or None
        return options


def _seconds(walltime: str) -> int:
    days, hours, minutes, seconds = map(int, re.findall(r"[0-9]+", walltime if "-" in walltime else f"0-{walltime}"))
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
