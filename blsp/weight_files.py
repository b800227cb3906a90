"""Weights that others saved, read by name and without running anything of theirs.

A folder holds `model.safetensors` or `pytorch_model.bin`, whole or in shards with an index. A .bin is a pickle: only
plain tensors come out of it, and whatever else it names is refused unread.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from cluster.json_files import read_object
from shards.foreign_models import named_in_pickle

_WHOLE = ("model.safetensors", "pytorch_model.bin")
_MAX_HEADER_BYTES = 16 * 2**20  # of 100,000 tensors; safetensors itself takes 100 MB, half a minute and 2 GB for it
_SAFETENSORS_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: what is known of it before it is read."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder by its name; safetensors come first where both forms are there.

    Raises ValueError when there are no weights, when an index does not fit its files or points out of the folder, when
    a file is damaged or would run code, and for tensors that are not of float32, float16 or bfloat16.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in _files(folder):
        try:
            found = _safetensors_file(path) if path.suffix == ".safetensors" else _torch_file(path)
        except (SafetensorError, RuntimeError, EOFError) as error:
            why = str(error).splitlines()[0]
            raise ValueError(f"{path}: cannot be read as {path.suffix} weights; is it whole? ({why})") from error
        for name, tensor in found.items():
            if name in tensors:
                raise ValueError(f"{path}: holds {name}, which {tensors[name].file.name} holds too")
            if tensor.dtype not in _SAFETENSORS_TYPES.values():
                raise ValueError(
                    f"{path}: {name} is of type {tensor.dtype}; only float32, float16 and bfloat16 are known"
                )
            tensors[name] = tensor
    return tensors


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file by its name. Raises ValueError when it is no whole such file, and for a
    number that is not finite."""
    try:
        _refuse_long_header(path)
        tensors = load_file(path)
        refuse_not_finite(path, tensors, "train it again, or take an earlier one")
    except (SafetensorError, RuntimeError) as error:  # also of types that torch knows by name only
        raise ValueError(f"{path}: cannot be read as safetensors; is it whole? ({error})") from None
    return tensors


def refuse_not_finite(path: Path, tensors: Mapping[str, Tensor], remedy: str) -> None:
    """Raises ValueError naming the first tensor with a number that is not finite."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: numbers in {name} are not finite, so nothing can be learnt from it; {remedy}")


def _refuse_long_header(path: Path) -> None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER_BYTES:
        raise ValueError(
            f"{path}: its header says that it has {length:,} bytes, which no model's has; is it another file?"
        )


def _files(folder: Path) -> list[Path]:
    for whole in _WHOLE:
        index = folder / f"{whole}.index.json"
        if index.is_file():
            return _shards(index, Path(whole).suffix)
        if (folder / whole).is_file():
            return [folder / whole]
    raise ValueError(f"{folder}: no weights here; expected {' or '.join(_WHOLE)}, or their shards with an index")


def _shards(index: Path, suffix: str) -> list[Path]:
    """The files that an index names: plain names of files beside it, nothing else."""
    try:
        weight_map = read_object(index)["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: is not an index of shards (no readable weight_map)") from error
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name) or not name.endswith(suffix):
            raise ValueError(
                f"{index}: names {name!r}; a shard is a {suffix} file beside its index, nothing else is read"
            )
        if not (index.parent / name).is_file():
            raise ValueError(f"{index}: names {name}, which is not there; is the download complete?")
    return [index.parent / name for name in names]


def _safetensors_file(path: Path) -> dict[str, StoredTensor]:
    _refuse_long_header(path)
    file: Any = safe_open(path, framework="pt")
    found = {}
    for name in file.keys():  # noqa: SIM118 (it is no dict)
        piece = file.get_slice(name)
        dtype = _SAFETENSORS_TYPES.get(piece.get_dtype(), piece.get_dtype())
        found[name] = StoredTensor(path, tuple(piece.get_shape()), dtype, partial(file.get_tensor, name))
    return found


def _torch_file(path: Path) -> dict[str, StoredTensor]:
    try:
        # torch's older format is no zip archive and cannot be mapped.
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UnpicklingError as error:
        raise ValueError(f"{path}: refused, because it {named_in_pickle(error)}; nothing of it was run") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not tensors by name")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout is not torch.strided:
            raise ValueError(f"{path}: holds a {type(value).__name__} under {name!r}; only tensors by name are read")
    return {name: StoredTensor(path, tuple(value.shape), value.dtype, value.detach) for name, value in content.items()}
