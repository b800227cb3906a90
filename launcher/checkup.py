"""What `blsp doctor` starts on every host: answers questions, one JSON object per line, until there are no more.

Every question is answered, with {"error": a sentence} where the host cannot. What says nothing of what it "is" would be
taken for a login shell's words.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster import checkup
from cluster.ports import refuse_taken_port

_listening: list[socket.socket] = []  # until this process ends


def _listen(address: str) -> dict[str, Any]:
    listener = socket.create_server((address, 0))
    _listening.append(listener)
    return {"port": listener.getsockname()[1]}


def _port(port: int) -> dict[str, Any]:
    refuse_taken_port(port)
    return {}


def _model(model: str, revision: str | None) -> dict[str, Any]:
    from huggingface_hub import try_to_load_from_cache

    from shards.pipeline.writers import model_fingerprint

    name = model_fingerprint(model, revision)
    if not Path(model).is_dir() and not isinstance(
        try_to_load_from_cache(model, "config.json", revision=revision), str
    ):
        raise ValueError(f"{model} is not in the cache of this host; run `hf download {model}` there")
    return {"is": name}


def _shards(root: str) -> dict[str, Any]:
    from shards.sets.shard_set import ShardSet

    return {"is": ShardSet.open(root).dataset_id}


_ANSWERS: dict[str, Callable[..., dict[str, Any]]] = {
    "clock": lambda: {"time_s": time.time()},
    "facts": lambda folder: checkup.facts(Path(folder)),
    "token": lambda folder, name: {"left": checkup.leave_token(Path(folder), name)},
    "tokens": lambda folder: {"seen": checkup.tokens(Path(folder))},
    "way": lambda host: checkup.way_to(host),
    "listen": _listen,
    "connect": lambda address, port: {"from": checkup.connect(address, port)},
    "port": _port,
    "model": _model,
    "shards": _shards,
}


def main() -> int:
    """Returns when stdin ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no answer
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = _ANSWERS[question.pop("do")](**question)
        except (OSError, ValueError) as error:
            answer = {"error": " ".join(str(error).split())}
        print(json.dumps({"is": "answer"} | answer), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
