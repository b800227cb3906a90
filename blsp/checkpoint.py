"""Checkpoints that are there as a whole or not at all.

A checkpoint is a folder `checkpoints/step-000120/` with DeepSpeed's ZeRO state of what trains (`zero/`), the place in
the plan and the recipe (`state.json`), and sizes and hashes of every file (`manifest.json`). It is written under
another name and committed by one rename. Loading checks the manifest and never runs pickled code.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from blsp.weight_files import named_in_pickle
from cluster.files import sync_folder, write_atomically

# What DeepSpeed's optimizer files hold besides tensors and plain values.
torch.serialization.add_safe_globals([ZeroStageEnum, LossScaler, fragment_address])

_TAG, _STATE, _MANIFEST = "zero", "state.json", "manifest.json"


@dataclass(frozen=True)
class TrainingState:
    """The place in the plan, and what it is a place in. The same on all ranks; under 512 bytes without the recipe."""

    step: int
    plan_hash: str
    world_size: int
    recipe: dict[str, Any]
    frozen: dict[str, str]


def save(engine: DeepSpeedEngine, folder: Path, state: TrainingState, keep: int) -> Path:
    """Write and commit one checkpoint; every rank calls it. Keeps the newest `keep` of the folder."""
    name = f"step-{state.step:06d}"
    temporary = folder / f".{name}.tmp"
    if dist.get_rank() == 0:
        for leftover in folder.glob(".step-*.tmp"):
            shutil.rmtree(leftover)
        temporary.mkdir(parents=True)
    dist.barrier()
    try:
        engine.save_checkpoint(str(temporary), tag=_TAG, save_latest=False)
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
        write_atomically(temporary / _STATE, json.dumps(asdict(state), default=str).encode())
        write_atomically(temporary / _MANIFEST, json.dumps(_hashes(temporary), indent=1).encode())
        shutil.rmtree(folder / name, ignore_errors=True)
        temporary.rename(folder / name)
        sync_folder(folder)
        _prune(folder, state.step, keep)
    dist.barrier()
    return folder / name


def _prune(folder: Path, step: int, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints up to the one just committed."""
    known = [path for path in _committed(folder) if path.name <= f"step-{step:06d}"]
    for old in known[:-keep]:
        shutil.rmtree(old)


def newest_valid(folder: Path, complain: Callable[[str], object] = print) -> Path | None:
    """The newest checkpoint whose files are all as its manifest says; a damaged one is named and passed over.

    Raises ValueError when there are checkpoints and all are damaged: to begin anew is for the user to decide.
    """
    candidates = _committed(folder)
    for candidate in reversed(candidates):
        problem = _damage(candidate)
        if problem is None:
            return candidate
        complain(f"{candidate} is damaged ({problem}) and passed over")
    if candidates:
        raise ValueError(f"{folder}: none of its checkpoints is whole; restore one, or remove the folder to begin anew")
    return None


def read_state(checkpoint: Path) -> TrainingState:
    """The place in the plan that a checkpoint was written at."""
    return TrainingState(**json.loads((checkpoint / _STATE).read_text()))


def load(engine: DeepSpeedEngine, checkpoint: Path) -> None:
    """Load weights and optimizer state into `engine`; every rank calls it. Keys must match exactly.

    Raises ValueError when a file would run code: none of ours does.
    """
    try:
        path, _ = engine.load_checkpoint(str(checkpoint), tag=_TAG, load_module_strict=True)
    except UnpicklingError as error:
        what = named_in_pickle(error)
        raise ValueError(f"{checkpoint}: refused, because a file in it {what}; nothing of it was run") from None
    assert path is not None, checkpoint


def changed_fields(before: dict[str, Any], after: dict[str, Any], path: str = "") -> list[str]:
    """Sentences such as `optim.steps: 200 -> 300`, one per field in which two recipes differ."""
    changes = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changes += changed_fields(old, new, f"{path}{key}.")
        elif old != new:
            changes.append(f"{path}{key}: {old} -> {new}")
    return changes


def _committed(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _hashes(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and hash of every file, all of them on the disk and not only in its cache."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
        sync_folder(path.parent)
    return {str(path.relative_to(folder)): {"bytes": path.stat().st_size, "blake2b": _hash(path)} for path in files}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _damage(checkpoint: Path) -> str | None:
    try:
        manifest = json.loads((checkpoint / _MANIFEST).read_text())
        wanted = {name: (entry["bytes"], entry["blake2b"]) for name, entry in manifest.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its {_MANIFEST} cannot be read: {error}"
    for name, (size, digest) in wanted.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size or _hash(path) != digest:
            return f"{name} is not as it was written"
    return None
