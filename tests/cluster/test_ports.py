from __future__ import annotations

import socket

import pytest

from cluster.ports import free_port, refuse_taken_port, reserve_port


def test_a_free_port_is_accepted() -> None:
    refuse_taken_port(free_port())


def test_a_port_in_use_is_refused_in_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} on this host is taken"):
            refuse_taken_port(port)


def test_a_port_whose_server_just_ended_is_accepted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        server.accept()[0].close()
        client.close()
    refuse_taken_port(port)


def test_a_reserved_port_is_given_to_nobody_and_a_server_can_listen_on_it() -> None:
    with reserve_port("127.0.0.1") as holder:
        port = holder.getsockname()[1]
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        refuse_taken_port(port)
        with socket.create_server(("127.0.0.1", port)) as server:
            assert server.getsockname()[1] == port
            with pytest.raises(ValueError, match="is taken"):
                refuse_taken_port(port)
