"""TCP ports and addresses of this host: find a free port, keep one, or refuse one that is taken before a job hangs on
it."""

from __future__ import annotations

import errno
import socket


def free_port(address: str = "127.0.0.1") -> int:
    """A port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind((address, 0))
        port: int = listener.getsockname()[1]
        return port


def reserve_port(address: str) -> socket.socket:
    """A socket on a free port of `address` that keeps others from being given the port until it is closed. A server
    that is told the number can listen there, as servers set SO_REUSEADDR."""
    holder = socket.socket()
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((address, 0))
    except OSError:
        holder.close()
        raise
    return holder


def refuse_taken_port(port: int, address: str = "") -> None:
    """Raises ValueError with the remedy when something already listens on `port`; '' means all interfaces."""
    with socket.socket() as listener:
        # As a server does: a connection that was closed a moment ago does not keep the port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            why = "is taken by another process" if error.errno == errno.EADDRINUSE else "is not open to this user"
            raise ValueError(f"port {port} on this host {why}; is another run going on? Choose another port") from None
