"""How close the data half comes to the limits of the machine, beside lhotse and webdataset on the same clips.

    python -m tests.bench.data [--clips N] [--rounds N] [--only FIGURES] [--audio FOLDER] [--out FILE.json]

Ratios of interleaved runs: the limit, ours and the peers take turns, and each round gives one ratio; printed are the
median and the range. About three minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cluster.files import write_atomically
from tests.bench.data import fetched, peers, planning, reading, unused, writing
from tests.bench.data.clips import make_clips
from tests.bench.data.figure import Figure, as_json, machine, markdown, some_of

PARTS = ("reader", "writer", "unused", "plan", "fetched")


def measure(arguments: argparse.Namespace, scratch: Path) -> list[Figure]:
    """The parts that were asked for, in the order of PARTS. Raises ValueError for a folder without audio."""
    clips = make_clips(scratch / "clips", arguments.clips, arguments.audio)
    parts: dict[str, Callable[[], list[Figure]]] = {
        "reader": lambda: reading.measure(clips, scratch, arguments.rounds),
        "writer": lambda: writing.measure(clips, scratch, arguments.rounds),
        "unused": lambda: unused.measure(arguments.rows // 10),
        "plan": lambda: planning.measure(
            arguments.rows, arguments.rows // 20, min(3, arguments.rounds), peers.HAS_LHOTSE
        ),
        "fetched": lambda: fetched.measure(scratch, arguments.clips, arguments.audio),
    }
    figures = []
    for name in PARTS:
        if name in arguments.only:
            began = time.perf_counter()
            figures += parts[name]()
            print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    return figures


def main() -> int:
    """Parses the command line. Returns the exit code: 0 also where a target is missed, which the table says."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.data", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clips", type=int, default=1000, metavar="N", help="clips to write and read (1000)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of each comparison (5)")
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="of the plan (1000000)")
    parser.add_argument("--only", default=PARTS, type=some_of(PARTS), metavar="A,B", help=f"some of {','.join(PARTS)}")
    parser.add_argument("--audio", type=Path, metavar="FOLDER", help="your own clips in place of espeak-ng's")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where the figures go too")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="bench-data-") as scratch:
            figures = measure(arguments, Path(scratch))
    except ValueError as error:
        print(f"bench-data: {error}", file=sys.stderr)
        return 2
    conditions = {**machine(), "clips": arguments.clips, "rounds": arguments.rounds}
    print(markdown(figures, conditions))
    if arguments.out:
        write_atomically(arguments.out, f"{as_json(figures, conditions)}\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
