"""TCP ports on this host: find a free one, or refuse one that is taken before a job hangs on it."""

from __future__ import annotations

import errno
import socket


def free_port(address: str = "127.0.0.1") -> int:
    """A port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind((address, 0))
        port: int = listener.getsockname()[1]
        return port


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
