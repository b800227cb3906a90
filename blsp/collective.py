"""A sum over all ranks, timed, which `blsp doctor` has the hosts of a run do: `python -m blsp.collective OUT`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from blsp import zero
from blsp.meeting import join

_BYTES = 64 * 2**20
_ROUNDS = 3
_NAME_BYTES = 64


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
    interfaces = _interfaces(device)
    if rank == 0:
        moved = 2 * (world - 1) / world * _BYTES  # what each rank sends, at least
        told = {
            "backend": dist.get_backend(), "ranks": world, "bytes_per_s": moved / min(seconds[1:]),
            "interfaces": interfaces,
        }  # fmt: skip
        Path(sys.argv[1]).write_text(json.dumps(told))
    dist.barrier()
    dist.destroy_process_group()
    return 0 if right else 1


def _interfaces(device: torch.device) -> list[str]:
    """What the environment of each rank names for the backend to go through; "" where the backend chooses."""
    own = os.environ.get(f"{dist.get_backend().upper()}_SOCKET_IFNAME", "").encode()[:_NAME_BYTES]
    name = torch.tensor([*own.ljust(_NAME_BYTES, b"\0")], dtype=torch.uint8, device=device)
    names = [torch.empty_like(name) for _ in range(dist.get_world_size())]
    dist.all_gather(names, name)
    return [bytes(name.tolist()).rstrip(b"\0").decode(errors="replace") for name in names]


if __name__ == "__main__":
    sys.exit(main())
