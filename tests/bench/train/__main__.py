"""What a training step costs: each saving beside the authors' way, the arithmetic at real size, and on a GPU itself.

    python -m tests.bench.train [--device cpu|cuda] [--only PARTS] [--shapes NAME] [--rounds N] [--threads N]
        [--clips N] [--out FILE]

On a CPU: one stage-1 step of a middle-sized model of random weights, run in all ways by turns (about four minutes on
two idle cores), and the arithmetic. On a GPU: Whisper-large-v2 with Qwen2.5-7B's shapes, random weights, both stages.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cluster.files import write_atomically
from tests.bench.data.figure import machine, some_of
from tests.bench.train import real_size, rows, tables
from tests.bench.train.shapes import SHAPES

PARTS = ("savings", "arithmetic", "throughput")


def main() -> int:
    """Parses the command line. Returns the exit code: 0 also where a target is missed, which the tables say."""
    arguments = _parse()
    shapes = {part: SHAPES[arguments.shapes or ("middle" if part == "savings" else "large")] for part in PARTS}
    figures: dict[str, Any] = {}
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(prefix="bench-train-") as folder:
        scratch = Path(folder)
        if "throughput" in arguments.only:
            device = torch.device(arguments.device)
            measured = real_size.measure(shapes["throughput"], scratch, device, arguments.clips)
            figures["throughput"] = [asdict(row) for row in measured]
            print(tables.throughput(measured, shapes["throughput"], device))
        if "savings" in arguments.only:
            step = rows.Step(shapes["savings"], scratch)
            saved = rows.measure(step, arguments.rounds)
            figures["savings"] = [asdict(row) for row in saved]
            print(
                tables.savings(
                    saved,
                    {
                        **machine(),
                        "threads": torch.get_num_threads(),
                        "rounds": arguments.rounds,
                        "shapes": shapes["savings"].name,
                    },
                )
            )
        if "arithmetic" in arguments.only:
            figures["arithmetic"] = tables.per_clip(shapes["arithmetic"])
            print(tables.arithmetic(figures["arithmetic"], shapes["arithmetic"]))
    if arguments.out:
        write_atomically(arguments.out, f"{json.dumps({**machine(), **figures}, indent=1)}\n".encode())
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.train", description=(__doc__ or "").split("\n\n")[0])
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default, help=f"where it runs ({default})")
    parser.add_argument("--only", type=some_of(PARTS), metavar="A,B", help=f"some of {','.join(PARTS)}")
    parser.add_argument("--shapes", choices=tuple(SHAPES), help="of the model (middle; at real size large)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of the savings (3)")
    parser.add_argument("--threads", type=int, metavar="N", help="of a CPU (all); with 1 a busy machine says more")
    parser.add_argument("--clips", type=int, metavar="N", help="per micro-batch at real size (as many as fit)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where the figures go too")
    arguments = parser.parse_args()
    if arguments.only is None:
        arguments.only = ("throughput", "arithmetic") if arguments.device == "cuda" else ("savings", "arithmetic")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
