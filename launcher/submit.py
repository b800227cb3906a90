"""The verb `submit`: a recipe becomes a SLURM job that saves, queues again and goes on by itself."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from blsp.recipe import EvalRecipe, ShardRecipe, TrainRecipe
from blsp.slurm_section import SlurmSection
from cluster.exit_codes import ExitCode
from cluster.files import write_atomically
from cluster.slurm import Job, batch_script, literal, submit
from launcher.recipe_files import find, load
from shards.sets.store import is_url


def as_overrides(given: Mapping[str, object]) -> list[str]:
    """Command line options as overrides of the recipe's section `slurm`; those that were not given are left out."""
    return [
        f"slurm.{name}={json.dumps([*map(str, value)] if isinstance(value, list) else value)}"
        for name, value in given.items()
        if value not in (None, [])
    ]


def run(recipe: str, overrides: Sequence[str], options: Sequence[str], after: int | None, dry_run: bool) -> None:
    """Writes the batch script and submits it, or only prints it. On stdout is the number of the job and nothing else.
    The job reads a copy of the recipe: what happens to the file from now on is not its concern.

    Raises RecipeError for a recipe or an option that is wrong, ValueError or OSError with SLURM's reason.
    """
    loaded = load(recipe, [*overrides, *options])
    path = find(recipe)
    text = path.read_bytes()
    copy = _folder(loaded) / f"{path.stem}-{hashlib.blake2b(text, digest_size=4).hexdigest()}.yaml"
    job = _job(loaded, [str(copy), *overrides], after)
    script = batch_script(job)
    if dry_run:
        print(script, end="")
        return
    write_atomically(copy, text)
    waiting = copy.with_name("submitted.sh")
    write_atomically(waiting, script.encode())
    number = submit(waiting)
    kept = waiting.replace(copy.with_name(f"{number}.sh"))
    print(f"job {number}: {kept}; it writes {kept.with_suffix('.log')}", file=sys.stderr)
    print(number)


def _job(recipe: TrainRecipe | ShardRecipe | EvalRecipe, arguments: Sequence[str], after: int | None) -> Job:
    section, folder = recipe.slurm or SlurmSection(), _folder(recipe)
    if not isinstance(recipe, TrainRecipe):
        _refuse_but_for_training(section)
        command = [recipe.kind, *arguments]
    else:
        command = ["launch", *arguments]
        if section.processes is not None:
            command += ["--processes", str(section.processes)]
        if section.container is not None:
            command += ["--container", str(section.container)]
    options = section.options()
    if after is not None:
        options |= {"dependency": f"afterok:{after}", "kill-on-invalid-dep": "yes"}
    return Job(
        name=folder.parent.name or recipe.kind,
        command=[sys.executable, "-m", "launcher", *command],
        goes_on=(ExitCode.STOPPED, ExitCode.AT_ONCE),
        written_by=shlex.join(["blsp", *sys.argv[1:]]),
        work_folder=Path.cwd(),
        log=f"{literal(folder)}/%j.log",
        warning_s=section.warning_s,
        options=options,
        modules=section.modules,
        checkpoints=folder.with_name("checkpoints") if isinstance(recipe, TrainRecipe) else None,
    )


def _folder(recipe: TrainRecipe | ShardRecipe | EvalRecipe) -> Path:
    """Of the script, the recipe and the log."""
    if isinstance(recipe, ShardRecipe) and is_url(recipe.out):  # a bucket takes no log
        output = Path("slurm") / recipe.out.rstrip("/").rpartition("/")[2]
    else:
        output = recipe.run if isinstance(recipe, TrainRecipe) else Path(recipe.out)
    return (output / "slurm").absolute()


def _refuse_but_for_training(section: SlurmSection) -> None:
    for field in ("processes", "container"):
        if getattr(section, field) is not None:
            raise ValueError(f"slurm.{field} is of training; another recipe cannot have it")
