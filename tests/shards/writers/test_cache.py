from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shards.writers import cache
from shards.writers.cache import Generations, key_of
from shards.writers.protocol import Generation

SLOW = Path(__file__).with_name("slow_writer.py")
TEXT = Generation("and so, «on»\n\u2028", True, 30, 8)


def run(folder: Path, texts: int, kill_after: int | None = None) -> list[str]:
    """What a writer process asked its LLM for; killed with SIGKILL once it has asked for so many."""
    command = [sys.executable, str(SLOW), str(folder), str(texts)]
    root = {"PYTHONPATH": str(SLOW.parents[3]), "PATH": ""}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=root) as process:
        assert process.stdout is not None
        asked = []
        for line in process.stdout:
            asked.append(line.strip())
            if len(asked) == kill_after:
                process.kill()
        assert process.wait() == (0 if kill_after is None else -9)
    return asked


def test_kill_9_costs_at_most_64_generations(tmp_path: Path) -> None:
    asked: list[str] = []
    for kill_after in (100, 40, 1):
        asked += run(tmp_path, 300, kill_after)
    asked += run(tmp_path, 300)
    lost = len(asked) - 300
    assert set(asked) == {f"text {i}" for i in range(300)} and 0 <= lost <= 3 * 2
    assert run(tmp_path, 300) == []


@pytest.mark.parametrize(
    "tail", [b'{"key": "', b'{"key": "0123456789abcdef0123456789abcdef", "text": "an', b"\xff\n", b"[]"]
)
def test_half_a_line_is_none(tmp_path: Path, tail: bytes) -> None:
    first = Generations(tmp_path, "w")
    first.put(key_of("w", 1), TEXT)
    (path,) = tmp_path.rglob("*.jsonl")
    path.write_bytes(path.read_bytes() + tail)
    again = Generations(tmp_path, "w")
    assert (again.get(key_of("w", 1)), again.get("0123456789abcdef" * 2), len(again)) == (TEXT, None, 1)


def test_a_damaged_line_is_written_anew(tmp_path: Path) -> None:
    first = Generations(tmp_path, "w")
    for number in range(3):
        first.put(key_of("w", number), TEXT)
    (path,) = tmp_path.rglob("*.jsonl")
    lines = path.read_bytes().split(b"\n")
    record = json.loads(lines[2])
    lines[2] = json.dumps({**record, "text": None}).encode()
    lines[3] = lines[3].replace(b'"finished": true', b'"finished": tr')
    path.write_bytes(b"\n".join(lines))
    again = Generations(tmp_path, "w")
    assert [again.get(key_of("w", number)) for number in range(3)] == [TEXT, None, None]


def test_each_process_and_writer_has_files_of_its_own(tmp_path: Path) -> None:
    caches = [Generations(tmp_path, name) for name in ("a", "a", "b")]
    for number, each in enumerate(caches):
        each.put(key_of("x", number), TEXT)
        each.put_unusable(5, 1)
    assert len(list(tmp_path.rglob("*.jsonl"))) == 3
    assert [len(Generations(tmp_path, name)) for name in ("a", "b", "c")] == [2, 1, 0]
    assert Generations(tmp_path, "a").tokens() == (70, 18)


def test_what_differs_in_model_wording_sampling_or_prompt_is_another_generation() -> None:
    keys = {key_of(writer, prompt) for writer in ("m wording=a", "m wording=b") for prompt in ([1, 2], [12], "12", [])}
    assert len(keys) == 8


def test_two_keys_of_the_same_beginning_are_told_apart(tmp_path: Path) -> None:
    first = Generations(tmp_path, "w")
    first.put("0" * 16 + "a" * 16, TEXT)
    first.put("0" * 16 + "b" * 16, Generation("b", False, 1, 1))
    again = Generations(tmp_path, "w")
    assert again.get("0" * 16 + "b" * 16) == Generation("b", False, 1, 1)
    assert again.get("0" * 32) is None


def test_lines_are_on_the_disk_by_64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(cache.os, "fsync", synced.append)
    made = Generations(tmp_path, "w")
    for number in range(130):
        made.put(key_of("w", number), TEXT)
    assert len(synced) == 2
    made.sync()
    made.sync()
    assert len(synced) == 3
