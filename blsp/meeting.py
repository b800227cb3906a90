"""Where the ranks of a run meet: a port of the first one's host, on the address that was given and no other."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import deepspeed
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from cluster.ports import free_port

# How torchrun tells torch that it serves the store.
_GUEST, _ATTEMPT = "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT"
_served: list[TCPStore] = []  # as long as this process lives


def join() -> torch.device:
    """Meet the other ranks; a process that no launcher started is a world of one."""
    alone = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    if "RANK" not in os.environ:
        os.environ.update(alone)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    with _place_to_meet():
        deepspeed.init_distributed(
            dist_backend="nccl" if device.type == "cuda" else "gloo", auto_mpi_discovery=False, verbose=False
        )
    return device


@contextmanager
def _place_to_meet() -> Iterator[None]:
    """While it is open, torch's ranks come as guests to the store that rank 0 has opened here. Left to itself, torch
    would listen on every interface of the first rank's host. torchrun opens one of its own."""
    if dist.is_initialized() or os.environ.get(_GUEST) == "True":
        yield
        return
    if os.environ["RANK"] == "0":
        world = int(os.environ["WORLD_SIZE"])
        on_this_host = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        _served.append(serve(address, port, world, one_host=on_this_host == world))
    before = os.environ.get(_ATTEMPT)
    os.environ.update({_GUEST: "True", _ATTEMPT: "0"})
    try:
        yield
    finally:
        del os.environ[_GUEST], os.environ[_ATTEMPT]
        if before is not None:
            os.environ[_ATTEMPT] = before


def serve(address: str, port: int, world: int, *, one_host: bool) -> TCPStore:
    """The store at which `world` ranks meet; it listens on `address` alone.

    An address that is none of this host's (a gateway's in front of a container), or a name that here means this host
    alone and there another, makes it listen on all. Raises OSError when the port is taken.
    """
    try:
        listener = socket.create_server((address, port), family=_family(address), backlog=max(world, 128))
    except socket.gaierror:
        listener = None
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        listener = None
    if listener is not None and not one_host and ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
        listener.close()
        listener = None
    if listener is None:
        listener = socket.create_server(("", port), backlog=max(world, 128))
        print(
            f"{address} is no address by which other hosts reach this one, so the ranks meet at port {port} of all of "
            "its interfaces",
            flush=True,
        )
    return TCPStore(address, port, world, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
