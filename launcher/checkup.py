"""What `blsp doctor` starts on every host: answers questions, one JSON object per line, until there are no more.

Every question is answered, with {"error": a sentence} where the host cannot. What says nothing of what it "is" would be
taken for a login shell's words.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster import checkup
from cluster.json_files import read_object
from cluster.ports import refuse_taken_port

_listening: list[socket.socket] = []  # until this process ends
_left: set[Path] = set()  # folders, each made for one doctor and named at random


def _listen(address: str) -> dict[str, Any]:
    listener = socket.create_server((address, 0))
    _listening.append(listener)
    return {"port": listener.getsockname()[1]}


def _port(port: int) -> dict[str, Any]:
    refuse_taken_port(port)
    return {}


def _token(folder: str, name: str) -> dict[str, Any]:
    _left.add(Path(folder))
    return {"left": checkup.leave_token(Path(folder), name)}


def _model(model: str, revision: str | None) -> dict[str, Any]:
    from huggingface_hub import try_to_load_from_cache

    from shards.writers.fingerprint import model_fingerprint

    folder = Path(model)
    if not folder.is_dir():
        model_fingerprint(model, revision)  # refuses what was meant as a folder
        config = try_to_load_from_cache(model, "config.json", revision=revision)
        if not isinstance(config, str):
            raise ValueError(f"{model} is not in the cache of this host; run `hf download {model}` there")
        folder = Path(config).parent
    name = model_fingerprint(str(folder), None)
    _require_weights(folder, model)
    return {"is": name}


def _require_weights(folder: Path, model: str) -> None:
    """Raises ValueError unless all that transformers will load is there: a download may have been broken off."""
    for whole in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{whole}.index.json"
        if index.is_file():
            shards = read_object(index).get("weight_map")
            if not isinstance(shards, dict) or not shards:
                raise ValueError(f"{index}: is not an index of shards (no weight_map)")
            missing = sorted({str(shard) for shard in shards.values() if not (folder / str(shard)).is_file()})
            if missing:
                raise ValueError(f"{model}: {', '.join(missing)} not in {folder}; is the download complete?")
            return
        if (folder / whole).is_file():
            return
    raise ValueError(f"{model}: no weights in {folder}; copy or download the whole model")


def _shards(root: str) -> dict[str, Any]:
    from shards.sets.shard_set import ShardSet

    return {"is": ShardSet.open(root).dataset_id}


_ANSWERS: dict[str, Callable[..., dict[str, Any]]] = {
    "clock": lambda: {"time_s": time.time()},
    "facts": lambda folder: checkup.facts(Path(folder)),
    "token": _token,
    "tokens": lambda folder: {"seen": checkup.tokens(Path(folder))},
    "way": lambda host: checkup.way_to(host),
    "listen": _listen,
    "connect": lambda address, port: {"from": checkup.connect(address, port)},
    "port": _port,
    "collective": lambda path: {"told": json.loads(Path(path).read_bytes())},
    "model": _model,
    "shards": _shards,
}


def main() -> int:
    """Returns when stdin ends, however the doctor ended, and leaves nothing on this host's file systems."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no answer
    try:
        for line in sys.stdin:
            question = json.loads(line)
            try:
                answer = _ANSWERS[question.pop("do")](**question)
            except (OSError, ValueError) as error:
                answer = {"error": " ".join(str(error).split())}
            print(json.dumps({"is": "answer"} | answer), file=answers, flush=True)
    finally:
        for folder in _left:
            shutil.rmtree(folder, ignore_errors=True)  # all hosts at the same time, perhaps of one file system
    return 0


if __name__ == "__main__":
    sys.exit(main())
