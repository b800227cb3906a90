"""Going on with another number of ranks than wrote a checkpoint.

Each rank's files hold its share of the weights and moments. DeepSpeed's universal checkpoint puts the shares together,
parameter by parameter, and any number of ranks can cut them anew. It is made once, by rank 0, in `universal/` inside
the checkpoint: a copy of the checkpoint takes it along and pruning takes it away.
"""

from __future__ import annotations

import os
import shutil
from argparse import Namespace
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from pickle import UnpicklingError

from deepspeed import DeepSpeedEngine
from deepspeed.checkpoint import ds_to_universal

from blsp import checkpoint
from blsp.checkpoint_folder import TAG, unlike_manifest, write_manifest
from cluster.files import sync_folder

_FOLDER = "universal"


def universal(folder: Path, announce: Callable[[str], object] = print) -> Path:
    """The form of the checkpoint `folder` that any number of ranks loads; made when it is not there or damaged.

    Only rank 0 calls it. Raises ValueError when a file of the checkpoint would run code (none of it runs) or is not
    as DeepSpeed writes it, OSError when the disk is full.
    """
    made = folder / _FOLDER
    problem = unlike_manifest(made) if made.exists() else "it is the first time"
    if problem is None:
        return made
    announce(f"{folder}: putting the shares of its ranks together for another number of ranks ({problem})")
    temporary = folder / f".{_FOLDER}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    _convert(folder, temporary)
    write_manifest(temporary)
    shutil.rmtree(made, ignore_errors=True)
    temporary.rename(made)
    sync_folder(folder)
    return made


def linked(checkpoint: Path, into: Path) -> Path:
    """A folder of the checkpoint's name in `into` with links to its files: what is put together there leaves the
    checkpoint as it is, which may be another's or in an archive."""
    folder = into / checkpoint.name
    folder.mkdir(parents=True)
    for path in checkpoint.resolve().iterdir():
        if path.name != _FOLDER or unlike_manifest(path) is None:
            (folder / path.name).symlink_to(path)
    return folder


def _convert(folder: Path, out: Path) -> None:
    try:
        with (
            Path(os.devnull).open("w") as silence, redirect_stdout(silence), redirect_stderr(silence),
            checkpoint.plainly_named(folder) as link,
        ):  # fmt: skip
            ds_to_universal.main(
                Namespace(
                    input_folder=str(link / TAG), output_folder=str(link / out.name / TAG), inject_missing_state=True,
                    num_extract_workers=1, num_merge_workers=1, keep_temp_folder=False, strict=True,
                )
            )  # fmt: skip
    except UnpicklingError as error:
        raise checkpoint.refusal(folder, error) from None
    except (RuntimeError, AssertionError, LookupError) as error:
        raise ValueError(
            f"{folder}: could not be made ready for another number of ranks ({error}); is the disk full? With as many "
            "ranks as wrote it, it loads as it is"
        ) from error


def load(engine: DeepSpeedEngine, made: Path) -> None:
    """Load what `universal` made into `engine`, whatever its number of ranks; every rank calls it."""
    optimizer = engine.optimizer
    groups = [{key: group[key] for key in group if key != "params"} for group in optimizer.param_groups]
    engine._config.load_universal_checkpoint = True
    try:
        checkpoint.load(engine, made)
    finally:
        engine._config.load_universal_checkpoint = False
    # Stage 3 gives all groups the first one's name and rates, and all states one tensor as their count of steps, which
    # each of them would then add to.
    for group, own in zip(optimizer.param_groups, groups, strict=True):
        group.update(own)
    for state in optimizer.state.values():
        state["step"] = state["step"].clone()
