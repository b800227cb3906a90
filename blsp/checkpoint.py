"""Checkpoints that are there as a whole or not at all, written while training goes on.

Every rank copies its share into CPU memory and a thread of it writes the copy under another name. When all ranks have
told each other that theirs is on the disk, in a later step's one exchange, a thread of rank 0 commits by one rename.
What a checkpoint holds: `blsp.checkpoint_folder`. Loading never runs pickled code.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import IntEnum
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from blsp.checkpoint_folder import (
    MANIFEST,
    STATE,
    TAG,
    TrainingState,
    checkpoint_name,
    entries,
    prune,
    receipt_name,
    receipts,
    remove,
    sweep,
    temporary_name,
)
from blsp.snapshot import SnapshotEngine, load_names
from cluster.files import persistently, sync_folder, words, write_atomically
from cluster.owner import TakenOverError
from shards.foreign_models import named_in_pickle

# What DeepSpeed's optimizer files hold besides tensors and plain values.
torch.serialization.add_safe_globals([ZeroStageEnum, LossScaler, fragment_address])


_PATIENCE_S = 10.0  # a shared file system may show another host's files late


class Report(IntEnum):
    """What a rank tells the others about the checkpoint in flight, in each step."""

    NOTHING = 0  # there is none, or this rank is not yet ready
    READY = 1  # its files are on the disk; of rank 0, once all are: committed
    FAILED = 2
    TAKEN_OVER = 3  # the run folder is another's now
    FATAL = 4  # an error that is no disk's


class Saver:
    """Saves a run's checkpoints, one at a time. Every rank makes the same calls in the same steps.

    A checkpoint that cannot be written is said and passed over: the earlier ones stay, training goes on, and the next
    one is tried in its turn. `still_owned` raises when another process has taken the folder over; rank 0 asks it before
    each checkpoint and each commit. `claim` counts the owners: none touches what a later one is writing.
    """

    def __init__(
        self, engine: DeepSpeedEngine, folder: Path, keep: int, still_owned: Callable[[], object] = lambda: None
    ) -> None:
        self._engine, self._folder, self._keep = engine, folder, keep
        self.still_owned, self.claim = still_owned, 0
        self._snapshot = engine.checkpoint_engine = SnapshotEngine()
        engine._copy_recovery_script = lambda save_path: None  # no programs among the weights
        self._state: TrainingState | None = None  # of the checkpoint in flight
        self._temporary = folder  # where its files are until it is committed
        self._committing = False
        self._thread = threading.Thread()
        self._outcome = Report.NOTHING  # of what the thread does
        self._error: BaseException | None = None
        self.problem = ""  # of the newest checkpoint; the same on all ranks, in different words

    def save(self, state: TrainingState) -> None:
        """Copy what trains and write it from now on; waits for the checkpoint before, if that is still in flight."""
        self.flush()
        self._state, self._error, self.problem = state, None, ""
        if not self._make_room():
            return
        try:
            self._engine.save_checkpoint(
                str(self._temporary), tag=TAG, save_latest=False, exclude_frozen_parameters=True
            )
        except BaseException:
            self._state = None  # nothing is in flight that could be committed
            raise
        self._begin(lambda: persistently(self._write))

    def report(self) -> Report:
        """What to tell the other ranks in this step."""
        return Report.NOTHING if self._state is None else self._outcome

    def hear(self, reports: Sequence[int]) -> None:
        """What all ranks told in this step, by rank. Commits when all are ready; raises ValueError on all ranks when
        the run folder is another's, and one rank's error of another kind on all."""
        if self._state is None or Report.NOTHING in reports[: 1 if self._committing else None]:
            return
        if max(reports) > Report.READY:
            self._give_up(reports)
        elif self._committing:
            self._state, self._committing = None, False
        else:
            self._committing, self._outcome = True, Report.NOTHING
            if dist.get_rank() == 0:
                self._begin(self._commit)

    def flush(self) -> None:
        """Wait until no checkpoint is in flight."""
        while self._state is not None:
            if self._thread.ident is not None:
                self._thread.join()
            reports: list[int] = [0] * dist.get_world_size()
            dist.all_gather_object(reports, int(self.report()))
            self.hear(reports)

    def finish(self) -> None:
        """`flush`, and raise OSError on all ranks when the newest checkpoint could not be written."""
        self.flush()
        if self.problem:
            raise OSError(self.problem)

    def _make_room(self) -> bool:
        """Whether rank 0 could make the folders that all write into. Raises on all ranks as `hear` does."""
        if dist.get_rank() == 0:
            self._attempt(lambda: persistently(self._make_folders))
        told: list[Any] = [self._outcome, str(self._temporary)]
        dist.broadcast_object_list(told, src=0)
        self._outcome, self._temporary = Report.NOTHING, Path(told[1])
        if told[0] != Report.READY:
            self._give_up(told[:1])
        return bool(told[0] == Report.READY)

    def _make_folders(self) -> None:
        assert self._state is not None
        self.still_owned()
        sweep(self._folder, self.claim)
        self._temporary = self._folder / temporary_name(self._state.step, self.claim)
        (self._temporary / TAG).mkdir(parents=True, exist_ok=True)

    def _begin(self, work: Callable[[], None]) -> None:
        self._outcome = Report.NOTHING
        # A daemon: a rank that ends with an error must not stay for a checkpoint that nobody will commit.
        self._thread = threading.Thread(target=self._attempt, args=(work,), daemon=True, name="checkpoint")
        self._thread.start()

    def _attempt(self, work: Callable[[], None]) -> None:
        """Do something, and note what to tell the others of it; an error is raised or said by the training thread."""
        self._error = None
        try:
            work()
        except TakenOverError as error:
            self._error, self._outcome = error, Report.TAKEN_OVER
        except OSError as error:
            self._error, self._outcome = error, Report.FAILED
        except BaseException as error:
            self._error, self._outcome = error, Report.FATAL
        else:
            self._outcome = Report.READY

    def _write(self) -> None:
        written = entries(self._temporary, self._snapshot.write())
        write_atomically(self._temporary / receipt_name(dist.get_rank()), json.dumps(written).encode())

    def _commit(self) -> None:
        assert self._state is not None
        temporary, final = self._temporary, self._folder / checkpoint_name(self._state.step)
        manifest = _patiently(lambda: receipts(temporary, dist.get_world_size()))
        persistently(lambda: self._complete(manifest))
        self.still_owned()
        if final.exists():
            remove(final)
        temporary.rename(final)
        try:
            for folder in (self._folder, self._folder.parent):
                persistently(partial(sync_folder, folder))
            prune(self._folder, self._state.step, self._keep)
        except OSError as error:
            print(f"{final}: written, but the earlier ones could not be deleted ({words(error)})", flush=True)

    def _complete(self, manifest: dict[str, dict[str, Any]]) -> None:
        """Rank 0's own files beside those of `manifest`; can be repeated."""
        assert self._state is not None
        for rank in range(dist.get_world_size()):
            (self._temporary / receipt_name(rank)).unlink(missing_ok=True)
        write_atomically(self._temporary / STATE, json.dumps(asdict(self._state), default=str).encode())
        manifest |= entries(self._temporary, [self._temporary / STATE])
        write_atomically(self._temporary / MANIFEST, json.dumps(manifest, indent=1).encode())

    def _give_up(self, reports: Sequence[int]) -> None:
        assert self._state is not None
        step, worst = self._state.step, max(reports)
        self._state, self._committing = None, False
        why = f"rank {list(reports).index(worst)} says why"
        if worst == Report.TAKEN_OVER:
            raise self._error or TakenOverError(f"{self._folder.parent}: taken over by another process; {why}")
        if worst == Report.FATAL:
            raise self._error or RuntimeError(f"{self._folder / checkpoint_name(step)}: could not be written; {why}")
        self.problem = (
            f"{self._folder / checkpoint_name(step)}: could not be written "
            f"({words(self._error) if self._error else why}); earlier checkpoints are as they were"
        )
        if dist.get_rank() == 0 or self._error:
            print(f"{self.problem}, training goes on, and the next one is tried in its turn", flush=True)
        if dist.get_rank() == 0:
            shutil.rmtree(self._temporary, ignore_errors=True)


def _patiently(look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `look` finds; asked again for a while when it raises OSError."""
    until_s = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return look()
        except OSError:
            if time.monotonic() > until_s:
                raise
        time.sleep(_PATIENCE_S / 20)


def load(engine: DeepSpeedEngine, checkpoint: Path) -> None:
    """Load weights and optimizer state into `engine`; every rank calls it. Keys must match exactly.

    Raises ValueError, on all ranks alike, when a file would run code (none of ours does), is no file of tensors, or
    holds other things than this model's.
    """
    _refuse_code(checkpoint)
    try:
        with plainly_named(checkpoint) as folder:
            path, _ = engine.load_checkpoint(str(folder), tag=TAG, custom_load_fn=load_names)
    except torch.OutOfMemoryError:
        raise
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{checkpoint}: is not what DeepSpeed writes of this model ({error!r})") from error
    if path is None:
        raise ValueError(f"{checkpoint}: DeepSpeed finds nothing to load in its folder {TAG}")
    if engine.zero_optimization() and not engine.zero_optimization_partition_weights():
        engine.optimizer.update_lp_params()  # the weights are those of the optimizer, in the model's type


@contextmanager
def plainly_named(folder: Path) -> Iterator[Path]:
    """Another path to `folder`: DeepSpeed takes a path for a pattern, and a run folder may be called `a[1]`."""
    with TemporaryDirectory() as place:
        link = Path(place) / "checkpoint"
        link.symlink_to(folder.absolute())
        yield link


def _refuse_code(checkpoint: Path) -> None:
    """The ranks share the files out and look at what each would unpickle; tensors are mapped, not read."""
    problem = ""
    for path in sorted((checkpoint / TAG).rglob("*.pt"))[dist.get_rank() :: dist.get_world_size()]:
        try:
            tensors_of(path)
        except ValueError as error:
            problem = str(error)
    problems: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    if any(problems):
        raise ValueError(next(filter(None, problems)))


def refusal(path: Path, error: UnpicklingError) -> ValueError:
    """What to say of a file that would run code."""
    return ValueError(f"{path}: refused, because it {named_in_pickle(error)}; nothing of it was run")


def tensors_of(path: Path) -> Any:
    """What a file of tensors holds. Raises ValueError when it would run code (it does not), or is no such file."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        raise refusal(path, error) from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({words(error)})") from None
    except (RuntimeError, EOFError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"{path}: refused, because it is no file of tensors ({why})") from None
