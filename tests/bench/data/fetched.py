"""Bytes that eight ranks read in one epoch, beside the bytes of the set: each sample should come over the wire once."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

from tests.bench.data.clips import Clips
from tests.bench.data.figure import Figure
from tests.bench.data.ours import make_reader, make_set
from tests.bench.data.timing import Spread

RANKS = 8


def measure(clips: Clips, scratch: Path) -> list[Figure]:
    """What the kernel says this process read while eight readers open the set and go through an epoch."""
    root = scratch / "fetched"
    make_set(clips, root)
    _epoch(root, 0)  # what is imported or made on first use is not data
    total = sum(path.stat().st_size for path in (root / "shards").iterdir())
    share = bytes_read(lambda: [_epoch(root, rank) for rank in range(RANKS)]) / total
    return [
        Figure(
            name=f"bytes read in an epoch by {RANKS} ranks / bytes of the tars", target=1.02,
            ours=Spread.of([share]),
        )
    ]  # fmt: skip


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


def _epoch(root: Path, rank: int) -> None:
    reader, plan, _ = make_reader(root, rank, RANKS)
    for _ in itertools.islice(reader.steps(0), plan.num_steps(0)):
        pass
