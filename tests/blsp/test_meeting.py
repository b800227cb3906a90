"""Ranks meet at an address that is given, and nothing else of them can be reached from other hosts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from blsp.meeting import serve
from cluster.ports import free_port
from tests.launcher.tiny_recipe import losses, write_recipe
from tests.listening import reachable


@pytest.mark.parametrize(
    ("address", "one_host", "everywhere"),
    [
        ("127.0.0.1", True, False), ("localhost", True, False),
        ("127.0.0.1", False, True),  # what this host is called here is another one there
        ("192.0.2.1", False, True),  # a gateway's, which is none of this host's
    ],
)  # fmt: skip
def test_the_store_listens_on_the_address_that_is_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], address: str, one_host: bool, everywhere: bool
) -> None:
    heard: list[str] = []
    listen = socket.create_server

    def listening(place: tuple[str, int], **options: object) -> socket.socket:
        made = listen(place, **options)  # type: ignore[arg-type]
        heard.append(made.getsockname()[0])
        return made

    monkeypatch.setattr(socket, "create_server", listening)
    if address == "192.0.2.1":  # nobody can come to it here
        monkeypatch.setattr("blsp.meeting.TCPStore", lambda *place, **options: os.close(options["master_listen_fd"]))
    store = serve(address, free_port(), 2, one_host=one_host)
    assert heard[-1] == ("0.0.0.0" if everywhere else "127.0.0.1")
    assert ("of all of its interfaces" in capsys.readouterr().out) == everywhere
    del store


def test_a_port_that_is_taken_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(OSError, match="in use"):
        serve("127.0.0.1", other.getsockname()[1], 1, one_host=True)


@pytest.mark.slow
def test_nothing_of_a_run_on_one_host_can_be_reached_from_another(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The coordinator, the agent, both ranks and their readers, looked at all the time."""
    recipe, seen = write_recipe(tmp_path, tokenizer, steps=4), set()
    command = [sys.executable, "-m", "launcher", "train", str(recipe), "--processes", "2"]
    with subprocess.Popen([*command, "data.num_workers=1"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as run:
        while run.poll() is None:
            seen |= reachable(run.pid)
            time.sleep(0.05)
        assert run.stdout is not None
        assert run.returncode == 0, run.stdout.read().decode()
    assert len(losses(tmp_path / "run")) == 4
    assert seen == set()
