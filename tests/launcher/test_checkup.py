"""What `blsp doctor` starts on every host: its answers, and that nothing is left of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def checkup(tmp_path: Path) -> Iterator[tuple[Ask, subprocess.Popen[str]]]:
    """A way to ask one, and its process; tmp_path / "hub" is its hub's cache."""
    process = subprocess.Popen(
        [sys.executable, "-m", "launcher.checkup"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub")},
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    orders, answers = process.stdin, process.stdout

    def ask(do: str, **details: Any) -> dict[str, Any]:
        print(json.dumps({"do": do, **details}), file=orders, flush=True)
        answer: dict[str, Any] = json.loads(answers.readline())
        return answer

    yield ask, process
    process.communicate(timeout=20)


def test_a_port_in_use_is_told_and_tokens_end_with_the_doctor(
    checkup: tuple[Ask, subprocess.Popen[str]], tmp_path: Path
) -> None:
    ask, process = checkup
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert "is taken by another process" in ask("port", port=server.getsockname()[1])["error"]
    folder = tmp_path / "run" / ".doctor-a"
    ask("token", folder=str(folder), name="token-a")
    assert ask("tokens", folder=str(folder))["seen"] == ["token-a"]
    process.communicate(timeout=20)
    assert process.returncode == 0 and not folder.exists() and folder.parent.is_dir()


def test_a_model_of_the_hub_needs_its_weights_and_is_told_by_them(
    checkup: tuple[Ask, subprocess.Popen[str]], tmp_path: Path
) -> None:
    ask, _ = checkup
    assert "is not in the cache" in ask("model", model="some/model", revision=None)["error"]
    cached = tmp_path / "hub" / "models--some--model"
    snapshot = cached / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    (snapshot / "config.json").write_text("{}")
    assert "no weights" in ask("model", model="some/model", revision=None)["error"]
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / "model-1.safetensors").write_bytes(b"one")
    assert "model-2.safetensors" in ask("model", model="some/model", revision=None)["error"]
    (snapshot / "model-2.safetensors").write_bytes(b"two")
    first = ask("model", model="some/model", revision=None)["is"]
    (snapshot / "model-2.safetensors").write_bytes(b"too")
    assert ask("model", model="some/model", revision=COMMIT)["is"] != first
