"""Bytes that eight ranks read in one epoch, beside the bytes of the set: each sample should come over the wire once."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from s3fs import S3FileSystem

from shards.sets.store import open_store
from tests.bench.data.clips import make_clips
from tests.bench.data.figure import Figure
from tests.bench.data.ours import make_reader, make_set
from tests.bench.data.timing import Spread
from tests.shards.s3_server import S3Server

RANKS = 8
MAX_CLIPS = 250  # for a range the S3 server on loopback reads the whole object
_NOBODY = {
    "AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nobody", "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}  # fmt: skip


def measure(scratch: Path, num_clips: int, audio: Path | None) -> list[Figure]:
    """Eight readers open the set and go through an epoch: by what the kernel says that this process read from files,
    and by what an S3 server on loopback has sent."""
    root = scratch / "fetched"
    make_set(make_clips(scratch / "few", min(num_clips, MAX_CLIPS), audio), root)
    _epoch(root, 0)  # what is imported or made on first use is not data
    total = sum(path.stat().st_size for path in (root / "shards").iterdir())
    read = {"a disk": bytes_read(lambda: _all_ranks(root)), "S3": _bytes_sent(root)}
    return [
        Figure(
            name=f"bytes read from {place} in an epoch by {RANKS} ranks / bytes of the tars", target=1.02,
            ours=Spread.of([number / total]),
        )
        for place, number in read.items()
    ]  # fmt: skip


def _bytes_sent(folder: Path) -> int:
    """Answers to all requests of the ranks, listings and descriptions included."""
    server = S3Server()
    try:
        with mock.patch.dict(os.environ, {**_NOBODY, "AWS_ENDPOINT_URL": server.url}):
            bucket = open_store("s3://bench/set")
            S3FileSystem(skip_instance_cache=True).mkdir("bench")
            for path in folder.rglob("*"):
                if path.is_file():
                    bucket.write(path.relative_to(folder).as_posix(), path.read_bytes())
            _epoch("s3://bench/set", 0)
            server.reset()
            _all_ranks("s3://bench/set")
            return server.bytes_sent
    finally:
        server.stop()


def _all_ranks(root: str | Path) -> None:
    for rank in range(RANKS):
        _epoch(root, rank)


def bytes_read(action: Callable[[], object]) -> int:
    """Bytes that this process asks of files while `action` runs, in the page cache or not."""
    before = _rchar()
    action()
    return _rchar() - before


def _rchar() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("rchar:"):
            return int(line.split()[1])
    raise OSError("/proc/self/io has no line rchar; this figure needs Linux")


def _epoch(root: str | Path, rank: int) -> None:
    reader, plan, _ = make_reader(root, rank, RANKS)
    for _ in itertools.islice(reader.steps(0), plan.num_steps(0)):
        pass
