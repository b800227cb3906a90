"""Where a pretrained model lies on this machine, and what the headers of its weights say: nothing is loaded."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path

from cluster.json_files import parse_object, read_object

_LONGEST_HEADER = 100_000_000  # bytes; as safetensors itself allows


def pretrained_folder(name: str, field: str, revision: str | None) -> Path:
    """The folder that `name` is, or that of the hub's cache. Raises ValueError when neither has its config.json."""
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"{field}: {name} has no config.json, which tells the sizes; is it the model's folder?")
        return folder
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        raise ValueError(f"{field}: {name} is not here, and its sizes are not guessed; make the folder first") from None
    if not isinstance(found, str):
        raise ValueError(
            f"{field}: {name} is neither a folder nor in the hub's cache, and its sizes are not guessed; "
            f"`hf download {name} config.json` brings the few kilobytes that are needed"
        )
    return Path(found).parent


def num_stored(folder: Path, counts: Callable[[str], bool]) -> int | None:
    """Elements of all tensors whose name `counts`, by the safetensors headers; None where there are no such files.

    Raises ValueError for a header that cannot be read. A shard that the index names and that is not here counts as
    nothing known: None.
    """
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.is_file():
        weight_map = read_object(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError(f"{index}: is not an index of shards (no weight_map)")
        names = {Path(str(name)).name for name in weight_map.values()}
    if not all((folder / name).is_file() for name in names):
        return None
    return sum(number for name in names for tensor, number in _elements(folder / name).items() if counts(tensor))


def _elements(path: Path) -> dict[str, int]:
    with path.open("rb") as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LONGEST_HEADER:
                raise ValueError("its header is too long")
            header = parse_object(file.read(length))
            shapes = {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
            if not all(type(size) is int and size >= 0 for shape in shapes.values() for size in shape):
                raise ValueError("a shape that is none")
            return {name: math.prod(shape) for name, shape in shapes.items()}
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: cannot be read as safetensors weights; is it whole?") from error
