"""On which addresses a process and all that it has started can be reached from other hosts."""

from __future__ import annotations

import ipaddress
from contextlib import suppress

import psutil


def reachable(process: int) -> set[str]:
    """`program: address:port` of every TCP socket that listens and every bound UDP socket, of the process and all that
    descend from it, but for those on the loopback interface."""
    found = set()
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(process)
        for one in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                for connection in one.net_connections("inet"):
                    open_to_all = connection.status in (psutil.CONN_LISTEN, psutil.CONN_NONE)
                    if open_to_all and connection.laddr and not ipaddress.ip_address(connection.laddr.ip).is_loopback:
                        found.add(f"{' '.join(one.cmdline())[-60:]}: {connection.laddr.ip}:{connection.laddr.port}")
    return found
