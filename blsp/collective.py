"""A sum over all ranks, timed, which `blsp doctor` has the hosts of a run do: `python -m blsp.collective OUT`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from blsp import zero
from blsp.meeting import join

_BYTES = 64 * 2**20
_ROUNDS = 3


def main() -> int:
    """Rank 0 writes what was measured into the file OUT. Returns 1 when the sum is wrong."""
    zero.prepare_environment()
    device = join()
    rank, world = dist.get_rank(), dist.get_world_size()
    right, seconds = True, []
    for _ in range(1 + _ROUNDS):  # the first one makes the connections
        values = torch.full((_BYTES // 4,), float(rank + 1), device=device)
        dist.barrier()
        began_s = time.monotonic()
        dist.all_reduce(values)
        right &= bool((values == world * (world + 1) / 2).all())  # and waits for a GPU
        seconds.append(time.monotonic() - began_s)
    if rank == 0:
        moved = 2 * (world - 1) / world * _BYTES  # what each rank sends, at least
        told = {"backend": dist.get_backend(), "ranks": world, "bytes_per_s": moved / min(seconds[1:])}
        Path(sys.argv[1]).write_text(json.dumps(told))
    dist.barrier()
    dist.destroy_process_group()
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
