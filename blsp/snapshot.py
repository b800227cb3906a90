"""What DeepSpeed saves, copied into CPU memory while training waits and written while it goes on."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine
from torch import Tensor, nn

from cluster.files import sync_folder


class SnapshotEngine(CheckpointEngine):  # type: ignore[misc]
    """Takes the place of DeepSpeed's own engine: `save` copies, `write` writes. The copies' memory is used again.

    Between `save` and the end of `write` the copies belong to the writer: no other `save` may come.
    """

    def __init__(self) -> None:
        super().__init__()
        self._files: list[tuple[Path, Any]] = []
        self._buffers: list[Tensor] = []
        self._num_used = 0

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing: `Saver` has made the folders, where an error does not part the ranks."""

    def preserves_storage_sharing(self) -> bool:
        """No: a copy is of the tensor alone, so DeepSpeed need not make one before."""
        return False

    def create(self, info: CheckpointCommitInfo) -> None:
        """Begin a checkpoint."""
        self._files, self._num_used = [], 0

    def save(self, state_dict: Any, path: str) -> None:
        """Copy one file's content; no weights that the optimizer's files hold."""
        self._files.append((Path(path), self._copied(_without_weights(state_dict))))

    def commit(self, info: CheckpointCommitInfo) -> bool:
        """All files of this rank are copied. Nothing is on the disk yet."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return True

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read a file; never runs code that is in it."""
        return torch.load(path, map_location=map_location, weights_only=True)

    def write(self) -> list[Path]:
        """Put the copies on the disk: written, and not only in its cache; can be repeated. Returns the files.

        Raises OSError when that fails.
        """
        for path, content in self._files:
            write_file(content, path)
        written = [path for path, _ in self._files]
        for folder in {path.parent for path in written}:
            sync_folder(folder)
        return written

    def _copied(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._on_cpu(value)
        if isinstance(value, dict):
            copied = copy.copy(value)  # with its class and what torch notes of a state dict
            copied.update((key, self._copied(entry)) for key, entry in value.items())
            return copied
        if type(value) in (list, tuple):
            return type(value)(self._copied(entry) for entry in value)
        return copy.deepcopy(value)

    def _on_cpu(self, tensor: Tensor) -> Tensor:
        index, self._num_used = self._num_used, self._num_used + 1
        fits = index < len(self._buffers) and _alike(self._buffers[index], tensor)
        if not fits:
            # Pinned memory is costly to get, several times faster to copy into from a GPU, and kept.
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[index:] = [buffer]
        self._buffers[index].copy_(tensor.detach(), non_blocking=True)
        return self._buffers[index]


def _without_weights(state: Any) -> Any:
    """ZeRO's optimizer files hold all weights in float32. Beside them the module's need their names only, which is how
    ZeRO 3 has them anyway."""
    held = {name for group in state.get("param_shapes") or [] for name in group}
    if not held:
        return state
    module = {name: value.new_empty(0) if name in held else value for name, value in state["module"].items()}
    return {**state, "module": module}


def load_names(src: dict[str, Tensor], dst: nn.Module) -> None:
    """Load what a checkpoint holds of a module; weights without values stay as they are.

    Raises RuntimeError when the names are not the module's.
    """
    own = dst.state_dict()
    dst.load_state_dict({name: value if value.numel() else own.get(name, value) for name, value in src.items()})


def _alike(buffer: Tensor, tensor: Tensor) -> bool:
    return buffer.shape == tensor.shape and buffer.dtype == tensor.dtype and buffer.is_pinned() == tensor.is_cuda


def write_file(content: Any, path: Path) -> None:
    """torch's format, on the disk. An OSError says what stands in the way."""
    with path.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # torch's zip writer still ends the file, and complains of that one's length.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.flush()
        os.fsync(file.fileno())
