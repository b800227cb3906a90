"""Which version of a model it is, and its name in what transformers says of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SAMPLED_BYTES = 2**20  # of either end of a weight file: enough to tell two trainings apart, whatever its size


def model_fingerprint(llm: str, revision: str | None) -> str:
    """`name@version`: for a folder 12 hex digits of its files (cheap: large ones by size and both ends), for a hub id
    its revision. Raises ValueError for a folder without a model, or that is not there."""
    folder = Path(llm)
    if not folder.is_dir():
        meant_as_folder = folder.is_absolute() or llm.startswith(".") or llm.count("/") > 1
        if meant_as_folder or (llm.count("/") == 1 and folder.parent.is_dir()):
            raise ValueError(f"{llm}: no such folder; give the model's folder or its hub id")
        return f"{llm}@{revision or 'main'}"
    if not (folder / "config.json").is_file():
        raise ValueError(f"{llm}: holds no config.json; a model's folder is what `save_pretrained` writes")
    digest = hashlib.blake2b(digest_size=6)
    # transformers reads the older format only where there is no other; beside it a folder may hold any .bin file.
    weights = ".safetensors" if any(folder.glob("*.safetensors")) else ".bin"
    for path in sorted(folder.iterdir()):
        if path.suffix not in {weights, ".json", ".jinja", ".txt", ".model", ".tiktoken"}:
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLED_BYTES))
            file.seek(max(size - _SAMPLED_BYTES, 0))
            digest.update(file.read(_SAMPLED_BYTES))
    return f"{folder.resolve().name}@{digest.hexdigest()}"


@contextmanager
def named_in_errors(model: str) -> Iterator[None]:
    """Puts the name of the model before what transformers says; without a network it says only that there is none."""
    try:
        yield
    except OSError as error:
        words = " ".join(str(error).split())
        raise OSError(words if model in words else f"{model}: {words}") from error
