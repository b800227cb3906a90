"""What lies in a run's `checkpoints/`: which are whole, where each stands in the plan, which may go. No torch here.

A checkpoint is a folder `step-000120/` with DeepSpeed's ZeRO state of what trains (`zero/`), the place in the plan and
the recipe (`state.json`), and sizes and hashes of every file (`manifest.json`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Container, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

from cluster.files import persistently, sync_folder, words, write_atomically
from cluster.json_files import read_object

TAG, STATE, MANIFEST = "zero", "state.json", "manifest.json"
_MAX_NUMBER = 10**11  # of steps, ranks and seconds since 1970


@dataclass(frozen=True)
class TrainingState:
    """The place in the plan, and what it is a place in. The same on all ranks; without recipe, corpora and
    names of shards under 512 bytes, and 6 KB more where bad steps are left out.

    It is the state of the random numbers too: whatever draws (dropout, augmentation, the order of clips) starts a
    generator from the recipe's seed and the step, micro-batch or clip, and nothing draws from one that runs on.
    """

    step: int
    plan_hash: str
    world_size: int
    recipe: dict[str, Any]
    frozen: dict[str, str]  # name and hash of what it does not hold: the pretrained parts, the earlier stage's export
    sums: list[Any] = field(default_factory=list)  # what the next line of the log is the mean of, so far
    saved_at_s: float = 0.0  # Unix time
    best: dict[str, Any] | None = None  # the best validation so far
    data: dict[str, Any] = field(default_factory=dict)  # what an export says of the clips, and the shards
    guard: dict[str, Any] = field(default_factory=dict)  # steps left out, and what a leap is measured by


def checkpoint_name(step: int) -> str:
    """The name of its folder."""
    return f"step-{step:06d}"


def temporary_name(step: int, claim: int) -> str:
    """Of a checkpoint that is being written by the owner of that number."""
    return f".{checkpoint_name(step)}.{claim:06d}.tmp"


def receipt_name(rank: int) -> str:
    """Of the file in which a rank says what it has written."""
    return f"rank-{rank}.json"


def receipts(folder: Path, world_size: int) -> dict[str, dict[str, Any]]:
    """What all ranks have written into `folder`, as a manifest says it. Raises OSError unless all of it is there."""
    manifest: dict[str, dict[str, Any]] = {}
    for rank in range(world_size):
        try:
            written = read_object(folder / receipt_name(rank))
            lost = [name for name, entry in written.items() if (folder / name).stat().st_size != entry["bytes"]]
        except (FileNotFoundError, ValueError) as error:
            raise OSError(f"the files of rank {rank} are not in it; do all hosts see one folder?") from error
        if lost:
            raise OSError(f"{lost[0]} of rank {rank} is not as it was written")
        manifest |= written
    return manifest


def newest_valid(folder: Path, complain: Callable[[str], object] = print, refused: Container[Path] = ()) -> Path | None:
    """The newest checkpoint whose files are all as its manifest says, but none of `refused`; a damaged one is named and
    passed over.

    Raises ValueError when there are checkpoints and all are damaged: to begin anew is for the user to decide.
    """
    candidates = committed(folder)
    for candidate in reversed(candidates):
        if candidate in refused:
            continue
        problem = damage(candidate)
        if problem is None:
            return candidate
        complain(f"{candidate} is damaged ({problem}) and passed over")
    if candidates:
        raise ValueError(f"{folder}: none of its checkpoints is whole; restore one, or remove the folder to begin anew")
    return None


def read_state(checkpoint: Path) -> TrainingState:
    """The place in the plan that a checkpoint was written at. Raises ValueError when it does not say."""
    path = checkpoint / STATE
    try:
        state = TrainingState(**read_object(path))
        _check_state(state)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: is not the state of a training run ({error})") from None
    return state


def _check_state(state: TrainingState) -> None:
    """Raises ValueError when a field is of another type, or a number that none can be."""
    example = TrainingState(0, "", 1, {}, {}, saved_at_s=0.0, best={})
    for name, value in vars(state).items():
        wanted = type(getattr(example, name))
        given = float(value) if wanted is float and type(value) is int and abs(value) < _MAX_NUMBER else value
        if type(given) is not wanted and not (name == "best" and value is None):
            raise ValueError(f"{name} is {str(value)[:80]!r}, no {wanted.__name__}")
        if isinstance(given, int | float) and not 0 <= given < _MAX_NUMBER:
            raise ValueError(f"{name} is {str(value)[:80]}, which it cannot be")
    if not all(isinstance(hashed, str) for hashed in state.frozen.values()):
        raise ValueError("frozen names something that is no hash")
    if state.best is not None and type(state.best.get("step")) is not int:
        raise ValueError("best names no step")


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


def committed(folder: Path) -> list[Path]:
    """All checkpoints of a folder, oldest first, whole or not."""
    named = (path for path in folder.glob("step-[0-9]*") if re.fullmatch("step-[0-9]{6,12}", path.name))
    return sorted(named, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's name says."""
    return int(checkpoint.name.removeprefix("step-"))


def num_bytes(folder: Path) -> int:
    """Of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def prune(folder: Path, step: int, keep: int) -> None:
    """Delete what is older than the newest `keep` whole checkpoints up to the one just committed, except that of the
    best validation.

    Only whole ones count (by the sizes of their files), so the last one that can be loaded is never among the deleted.
    """
    known = [path for path in committed(folder) if step_of(path) <= step]
    kept = [path for path in known if damage(path, every_byte=False) is None][-keep:]
    best = best_of(known)
    for old in known:
        if kept and step_of(old) < step_of(kept[0]) and old != best:
            remove(old)


def best_of(checkpoints: list[Path]) -> Path | None:
    """The checkpoint of the best validation, as the newest of these says; of the best one before, where that one is not
    there or damaged."""
    for checkpoint in reversed(checkpoints):
        with suppress(OSError, ValueError, TypeError, LookupError, AttributeError):  # a damaged one knows nothing
            best = read_state(checkpoint).best
            if best is None:
                return None
            found = checkpoint.parent / checkpoint_name(best["step"])
            if damage(found, every_byte=False) is None:
                return found
    return None


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint: first its name, so that no half of it is ever taken for one. What cannot be deleted stays
    for `sweep`."""
    names = (checkpoint.with_name(f".{checkpoint.name}.{number}.old") for number in count())
    aside = next(name for name in names if not name.exists())
    checkpoint.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def sweep(folder: Path, claim: int) -> None:
    """Delete what a kill in the middle of a save or a removal has left, but nothing that an owner after `claim` writes;
    for the owner of the folder alone."""
    for leftover in folder.glob(".step-*"):
        writer = re.search(r"\.(\d+)\.tmp$", leftover.name)
        if writer is None or int(writer[1]) <= claim:
            shutil.rmtree(leftover, ignore_errors=True)


def entries(folder: Path, files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """What a manifest says of files that are on the disk: size and hash."""
    return {str(path.relative_to(folder)): {"bytes": path.stat().st_size, "blake2b": file_hash(path)} for path in files}


def write_manifest(folder: Path) -> None:
    """Put the sizes and hashes of all files of `folder` beside them, once they are on the disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
        sync_folder(path.parent)
    write_atomically(folder / MANIFEST, json.dumps(entries(folder, files), indent=1).encode())


def file_hash(path: Path) -> str:
    """What a manifest says of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def damage(checkpoint: Path, every_byte: bool = True) -> str | None:
    """What is wrong with a checkpoint; None when all that it must hold is there and whole. Not `every_byte`: as far as
    sizes tell."""
    problem = unlike_manifest(checkpoint, every_byte)
    if problem is not None:
        return problem
    names = read_object(checkpoint / MANIFEST)
    if STATE not in names or not any(name.startswith(f"{TAG}/") for name in names):
        return f"its {MANIFEST} names no weights, or no {STATE}"
    return None


def unlike_manifest(folder: Path, every_byte: bool = True) -> str | None:
    """What is not as the manifest of a folder says; None when all of it is whole. Not `every_byte`: only the sizes."""
    try:
        manifest = read_object(folder / MANIFEST)
        wanted = {name: (entry["bytes"], entry["blake2b"]) for name, entry in manifest.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its {MANIFEST} cannot be read: {error}"
    for name, (size, digest) in wanted.items():
        path, parts = folder / name, PurePosixPath(name).parts
        if not name.isprintable() or name.startswith("/") or ".." in parts:
            return f"its {MANIFEST} names {name[:80]!a}, which is no file of a checkpoint"
        try:
            if not path.is_file():
                return f"{name} is missing"
            same = path.stat().st_size == size and (not every_byte or persistently(partial(file_hash, path)) == digest)
        except OSError as error:
            return f"{name} cannot be read ({words(error)})"
        if not same:
            return f"{name} is not as it was written"
    return None
