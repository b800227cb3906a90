"""How much of a bare FLAC decoder's speed is left when samples come through a reader."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import soundfile

from tests.bench.data import peers
from tests.bench.data.clips import Clips
from tests.bench.data.figure import Figure
from tests.bench.data.ours import make_reader, make_set
from tests.bench.data.timing import interleaved, share


def measure(clips: Clips, scratch: Path, rounds: int) -> list[Figure]:
    """One epoch each, in this process: the bare decoder, samples in the plan's order, batches, and the peers."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # as in a reader's workers
    make_set(clips, scratch / "set")
    reader, plan, shard_set = make_reader(scratch / "set")

    def bare() -> None:
        for flac in clips.flacs:
            soundfile.read(io.BytesIO(flac), dtype="int16")

    def samples() -> None:
        for step in plan.epoch(1):
            for rows in step:
                shard_set.read_many([int(row) for row in rows])

    def batches() -> None:
        steps = plan.num_steps(0)
        for _ in itertools.islice(reader.steps(steps), steps):
            pass

    operations: dict[str, Callable[[], object]] = {"bare": bare, "samples": samples, "batches": batches}
    peers.write_webdataset(clips, scratch / "read-webdataset")
    operations["webdataset"] = peers.webdataset_reader(scratch / "read-webdataset")
    if peers.HAS_LHOTSE:
        peers.shar_writer(clips)(scratch / "read-shar")
        operations["lhotse Shar"] = peers.shar_reader(scratch / "read-shar")
    taken = interleaved(operations, rounds)
    others = {name: share(taken["bare"], taken[name]) for name in operations if name in ("webdataset", "lhotse Shar")}
    return [
        Figure(
            name="reader, all guarantees on / bare FLAC decode", target=0.9, at_least=True,
            ours=share(taken["bare"], taken["samples"]), peers=others,
        ),
        Figure(
            name="the same, with tokens and packing into tensors", ours=share(taken["bare"], taken["batches"]),
        ),
    ]  # fmt: skip
