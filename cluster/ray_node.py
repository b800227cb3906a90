"""One host's part of a Ray cluster that lives as long as a `with` block: a head on the first host, the others join it.

Whoever starts it puts RAY_AUTH_MODE=token and RAY_AUTH_TOKEN into the environment, the same on every host.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.interface import address_towards
from cluster.ray_session import session_folder

_OBJECT_STORE_BYTES = 256 * 2**20  # texts and commit records pass through it, never audio
_START_S = 90.0
_STOP_S = 10.0
_KNOCK_S = 1.0
_GONE_S = 10.0  # of silence; a busy head misses a knock


@contextmanager
def ray_node(address: str, port: int, *, is_head: bool) -> Iterator[subprocess.Popen[bytes]]:
    """Ray's processes on this host, for the head at `address`:`port`; they end with the block, and with this process.

    Yields the process that all others hang on. Raises OSError when the head does not answer within 90 s, or cannot
    start.
    """
    own = address if is_head else address_towards(address) or address
    start = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats",
        f"--node-ip-address={own}", f"--num-cpus={len(os.sched_getaffinity(0))}",
        f"--object-store-memory={_OBJECT_STORE_BYTES}",
        "--min-worker-port=0", "--max-worker-port=0",  # any that are free, or Ray takes `port` for one of its own
        *(["--head", f"--port={port}", "--include-dashboard=false"] if is_head else [f"--address={address}:{port}"]),
    ]  # fmt: skip
    if not is_head:
        _wait_for(address, port)
    with session_folder() as folder:
        node = subprocess.Popen(
            [*start, f"--temp-dir={folder}/s"], env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            _wait_for(address, port, node)
            yield node
        finally:
            node.send_signal(signal.SIGTERM)  # it ends what it has started
            try:
                node.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                node.kill()


def wait_while_there(address: str, port: int, node: subprocess.Popen[bytes]) -> None:
    """Returns when the head at `address`:`port` has not answered for 10 s. Raises OSError when it does, but this host's
    own part has ended."""
    heard_s = time.monotonic()
    while (now_s := time.monotonic()) - heard_s < _GONE_S:
        ended = node.poll() is not None
        if _answers(address, port):
            heard_s = now_s
            if ended:
                raise OSError(f"this host's part of the Ray cluster has ended with exit code {node.returncode}")
        time.sleep(_KNOCK_S)


def _wait_for(address: str, port: int, node: subprocess.Popen[bytes] | None = None) -> None:
    until_s = time.monotonic() + _START_S
    while not _answers(address, port):
        if node is not None and node.poll() is not None:
            raise OSError(f"Ray has ended with exit code {node.returncode} before it answered at {address}:{port}")
        if time.monotonic() > until_s:
            raise OSError(f"no Ray head has answered at {address}:{port} for {_START_S:.0f} s")
        time.sleep(_KNOCK_S / 4)


def _answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), _KNOCK_S).close()
    except OSError:
        return False
    return True
