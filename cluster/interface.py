"""Which network interface leads to another host.

Left alone, gloo takes the one that this host's own name resolves to. Where that is 127.0.1.1, as Debian sets it up, the
other hosts are told to connect to themselves.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Iterable, MutableMapping
from contextlib import suppress

_SIOCGIFADDR = 0x8915
_REQUEST = struct.Struct("=16sHH4s232x")  # Linux's struct ifreq: name, then family, port and address
_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def choose_interface(environment: MutableMapping[str, str], master: str) -> None:
    """Have gloo and NCCL use the interface that leads to the host `master`, unless the user has said which. Does
    nothing on a run of one host, and where no way to `master` is known: then they choose as they always do."""
    address = None
    with suppress(OSError):
        address = address_towards(master)
    interface = address and interface_of(address)
    if interface and not any(environment.get(name) for name in _VARIABLES):
        environment.update(dict.fromkeys(_VARIABLES, interface))


def address_towards(host: str) -> str | None:
    """This host's IPv4 address on the way to `host` (a name or an address, perhaps its own): what others reach it by.

    None where that is a loopback address. Raises OSError when `host` has no address or no way leads to it.
    """
    for *_, place in socket.getaddrinfo(host, 9, socket.AF_INET, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
            way.connect(place)  # sends nothing
            own: str = way.getsockname()[0]
        if not ipaddress.ip_address(own).is_loopback:
            return own
    return None


def connected_address() -> str:
    """This host's address that ssh came to, for a process that ssh started; '' where it is the host's own business."""
    words = os.environ.get("SSH_CONNECTION", "").split()
    address = words[2] if len(words) == 4 else ""
    return "" if address.startswith("127.") or ":" in address else address


def meeting_address(others: Iterable[str]) -> str:
    """Where `others` (names and addresses, the surest first) reach this host. Raises OSError when nothing tells."""
    for other in others:
        with suppress(OSError):
            if other and (address := address_towards(other)):
                return address
    if address := connected_address():
        return address
    raise OSError(f"{socket.gethostname()}: no network leads from this host to the others; does it know their names?")


def interface_of(address: str) -> str | None:
    """The name of the interface that has this IPv4 address; None if none has."""
    wanted = socket.inet_aton(address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            # With an address in it the question is whether the interface has that one among others.
            request = _REQUEST.pack(name.encode(), socket.AF_INET, 0, wanted)
            with suppress(OSError):  # an interface without addresses
                if _REQUEST.unpack(fcntl.ioctl(asked, _SIOCGIFADDR, request))[3] == wanted:
                    return name
    return None
