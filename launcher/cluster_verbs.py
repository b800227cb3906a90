"""Verbs for many hosts and GPUs; `launcher.cli` puts them beside the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from launcher.arguments import Overrides, RecipeName

if TYPE_CHECKING:
    from blsp.recipe import EvalRecipe, ShardRecipe

RecipeKind = TypeVar("RecipeKind", "ShardRecipe", "EvalRecipe")


def launch(
    context: typer.Context,
    recipe: RecipeName,
    overrides: Overrides = None,
    hostfile: Annotated[
        Path | None,
        typer.Option(help="Hosts that ssh reaches (see hostfile.example); default: those of the SLURM job."),
    ] = None,
    min_hosts: Annotated[
        int | None, typer.Option(min=1, help="With --hostfile: go on with so many when the others are gone for good.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="In a SLURM job: processes on each host; default: one per GPU, or one.")
    ] = None,
    container: Annotated[
        Path | None, typer.Option(metavar="IMAGE", help="In a SLURM job: Apptainer image for the processes.")
    ] = None,
) -> None:
    """Train over many hosts, or go on from the last checkpoint. When a rank fails or hangs, or a host is lost, the run
    starts again. `blsp submit` runs it as a SLURM job.
    """
    from blsp.recipe import TrainRecipe
    from launcher import allocation, hosts
    from launcher.recipe_files import find, load_kind

    overrides = overrides or []
    loaded = load_kind(TrainRecipe, recipe, overrides)  # before any process starts
    path, debug = find(recipe), context.find_root().params["debug"]
    if hostfile is not None and (processes, container) != (None, None):
        raise ValueError("--processes and --container are for SLURM jobs; a hostfile's slots are its processes")
    if hostfile is None and min_hosts is not None:
        raise ValueError("--min-hosts goes with --hostfile; SLURM itself starts a job again when a host is gone")
    if hostfile is not None:
        code = hosts.train(loaded, path, overrides, hostfile=hostfile, min_hosts=min_hosts, debug=debug)
    else:
        code = allocation.train(loaded, path, overrides, processes=processes, container=container, debug=debug)
    raise typer.Exit(code)


_Hostfile = Annotated[
    Path | None, typer.Option(help="Hosts that ssh reaches; default: this one, or all of the SLURM job.")
]


def shard(context: typer.Context, recipe: RecipeName, overrides: Overrides = None, hostfile: _Hostfile = None) -> None:
    """Let the LLM write continuations, and pack them with the audio into shards."""
    from blsp.recipe import ShardRecipe
    from launcher import data

    _here_or_over_hosts(context, ShardRecipe, data.shard, recipe, overrides or [], hostfile)


def evaluate(
    context: typer.Context, recipe: RecipeName, overrides: Overrides = None, hostfile: _Hostfile = None
) -> None:
    """Measure what systems hear on a test manifest; the same command again goes on where an earlier one stopped."""
    from blsp.recipe import EvalRecipe
    from launcher import use

    _here_or_over_hosts(context, EvalRecipe, use.evaluate, recipe, overrides or [], hostfile)


def _here_or_over_hosts(
    context: typer.Context,
    kind: type[RecipeKind],
    here: Callable[[RecipeKind], None],
    recipe: str,
    overrides: list[str],
    hostfile: Path | None,
) -> None:
    from launcher import ray_hosts
    from launcher.recipe_files import find, load_kind

    loaded = load_kind(kind, recipe, overrides)
    if (places := ray_hosts.places(loaded, hostfile)) is None:
        here(loaded)
        return
    debug = context.find_root().params["debug"]
    raise typer.Exit(ray_hosts.run(loaded, find(recipe), overrides, places, debug))


def submit(
    recipe: RecipeName,
    overrides: Overrides = None,
    nodes: Annotated[int | None, typer.Option(help="Hosts.")] = None,
    processes: Annotated[int | None, typer.Option(help="Training processes on each host.")] = None,
    tasks_per: Annotated[
        str | None, typer.Option("--tasks-per", metavar="node|gpu", help="What SLURM counts as a task; default: node.")
    ] = None,
    time: Annotated[str | None, typer.Option(metavar="[DAYS-]HH:MM:SS", help="Walltime.")] = None,
    warning_s: Annotated[
        int | None, typer.Option("--warning-s", help="Seconds before the walltime at which it saves and queues again.")
    ] = None,
    partition: Annotated[str | None, typer.Option(help="One or several, with commas.")] = None,
    account: Annotated[str | None, typer.Option(help="Who pays.")] = None,
    qos: Annotated[str | None, typer.Option(help="Quality of service.")] = None,
    constraint: Annotated[str | None, typer.Option(help="Features of the hosts, as 'a100&ib'.")] = None,
    gres: Annotated[str | None, typer.Option(help="Devices on each host, as gpu:8.")] = None,
    module: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Load it first; may be repeated.")] = None,
    container: Annotated[
        Path | None, typer.Option(metavar="IMAGE", help="Apptainer image for the training processes.")
    ] = None,
    sbatch: Annotated[
        list[str] | None, typer.Option(metavar="OPTION", help="Any other of sbatch's, as --sbatch=--exclusive.")
    ] = None,
    after: Annotated[
        int | None, typer.Option(metavar="JOB", help="Begin when this job has ended well; never, if it fails.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the batch script and do nothing.")] = False,
) -> None:
    """Train, or write shards, as a SLURM job; prints its number. Before the walltime, and when another job goes first,
    it saves, waits in the queue and goes on by itself. The options stand above the recipe's section `slurm`.
    """
    from launcher import submit

    given = {
        "nodes": nodes, "processes": processes, "tasks_per": tasks_per, "time": time, "warning_s": warning_s,
        "partition": partition, "account": account, "qos": qos, "constraint": constraint, "gres": gres,
        "modules": module, "container": None if container is None else str(container), "sbatch": sbatch,
    }  # fmt: skip
    submit.run(recipe, overrides or [], submit.as_overrides(given), after, dry_run)


def estimate(
    recipe: RecipeName,
    overrides: Overrides = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="How many; default: 1 to 512 are compared.")] = None,
    gpu: Annotated[str, typer.Option(help="a100-40, a100-80, h100 or h200.")] = "a100-80",
    fabric: Annotated[str, typer.Option(help="Between hosts: nvlink (one host), 8xhdr, 4x100gb, 1x100gb.")] = "8xhdr",
) -> None:
    """Say what a training takes before anything is spent: memory by part, time, network, how many GPUs are worth it.
    Refuses what cannot fit. Reads sizes alone, and needs no torch.
    """
    from blsp.recipe import EvalRecipe
    from launcher import estimate as verb
    from launcher.recipe_files import load

    asked = load(recipe, overrides or [])
    if isinstance(asked, EvalRecipe):
        raise ValueError(f"{recipe}: an evaluation is not estimated; name a recipe for `blsp train` or `blsp shard`")
    verb.run(asked, gpus, gpu, fabric)


def doctor(
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="Also its run folder, models and shards.")
    ] = None,
    overrides: Overrides = None,
    hostfile: Annotated[Path | None, typer.Option(help="Hosts that ssh reaches; default: this one.")] = None,
) -> None:
    """Look at the hosts of a run before it is started: versions, GPUs, the shared folder, clocks, limits, the network,
    and a sum over all ranks. Exit code 1 when something is wrong; a remedy stands below the table.
    """
    from blsp.recipe import TrainRecipe
    from launcher import doctor, hosts
    from launcher.recipe_files import load_kind

    loaded = None if recipe is None else load_kind(TrainRecipe, recipe, overrides or [])
    named = None if hostfile is None else hosts.read(hostfile)
    raise typer.Exit(doctor.run(loaded, named))
