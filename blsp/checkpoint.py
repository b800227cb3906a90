"""Checkpoints that are there as a whole or not at all: written under another name and committed by one rename.

What a checkpoint holds: `blsp.checkpoint_folder`. Loading never runs pickled code.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from blsp.checkpoint_folder import STATE, TAG, TrainingState, checkpoint_name, prune, write_manifest
from blsp.weight_files import named_in_pickle
from cluster.files import sync_folder, write_atomically

# What DeepSpeed's optimizer files hold besides tensors and plain values.
torch.serialization.add_safe_globals([ZeroStageEnum, LossScaler, fragment_address])


def save(engine: DeepSpeedEngine, folder: Path, state: TrainingState, keep: int) -> Path:
    """Write and commit one checkpoint; every rank calls it. Keeps the newest `keep` of the folder."""
    name = checkpoint_name(state.step)
    temporary = folder / f".{name}.tmp"
    if dist.get_rank() == 0:
        for leftover in folder.glob(".step-*.tmp"):
            shutil.rmtree(leftover)
        temporary.mkdir(parents=True)
    dist.barrier()
    try:
        engine.save_checkpoint(str(temporary), tag=TAG, save_latest=False)
    except RuntimeError as error:
        # torch's zip writer says this of a full disk, and not in these words.
        if not any(sign in str(error) for sign in ("inline_container", "iostream", "PytorchStreamWriter")):
            raise
        raise OSError(
            f"{temporary}: the checkpoint could not be written; is the disk full? Earlier checkpoints are as they "
            "were, and with some room the same command goes on from the newest"
        ) from error
    dist.barrier()
    if dist.get_rank() == 0:
        for script in temporary.glob("*.py"):
            script.unlink()
        write_atomically(temporary / STATE, json.dumps(asdict(state), default=str).encode())
        write_manifest(temporary)
        shutil.rmtree(folder / name, ignore_errors=True)
        temporary.rename(folder / name)
        sync_folder(folder)
        prune(folder, state.step, keep)
    dist.barrier()
    return folder / name


def load(engine: DeepSpeedEngine, checkpoint: Path) -> None:
    """Load weights and optimizer state into `engine`; every rank calls it. Keys must match exactly.

    Raises ValueError when a file would run code: none of ours does.
    """
    try:
        path, _ = engine.load_checkpoint(str(checkpoint), tag=TAG, load_module_strict=True)
    except UnpicklingError as error:
        raise refusal(checkpoint, error) from None
    assert path is not None, checkpoint


def refusal(checkpoint: Path, error: UnpicklingError) -> ValueError:
    """What to say of a checkpoint with a file that would run code."""
    what = named_in_pickle(error)
    return ValueError(f"{checkpoint}: refused, because a file in it {what}; nothing of it was run")
