from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.json_files import parse_object, read_object
from tests.bounds import bounded


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "not JSON"), (b"{", "not JSON"), (b"[1]", "expected a JSON object, got list"), (b"3", "got int"),
        (b'"\xff"', "not UTF-8 text"), (b"\xff\xfe{\0}\0", "not UTF-8 text"), (b"[" * 10**6, "not JSON"),
        (b'{"a":' * 10**6, "not JSON"), (b'{"a": ' + b"9" * 10**6 + b"}", "not JSON (Exceeds the limit"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "nested deeper than 64"),
        (b"{}" + b" " * 10**6, "larger than 999,999 bytes"),
    ],
    ids=range(11),
)  # fmt: skip
def test_anything_but_an_object_of_bounded_size_is_a_sentence(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    ended = bounded(lambda: read_object(path, 999_999), seconds=5, megabytes=100)
    assert (ended.error, ended.said.startswith(f"{path}: ")) == ("ValueError", True)
    assert what in ended.said or "larger than 999,999 bytes" in ended.said
    assert len(ended.said) < 500


def test_what_is_no_file_neither_hangs_nor_fills_the_memory(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null")):
        assert bounded(lambda path=path: read_object(path), seconds=5, megabytes=400).error == "ValueError"
    with pytest.raises(OSError):
        read_object(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_object(tmp_path / "absent")


def test_an_object_comes_back_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": [1, {"b": null}], "ü": "\\ud83d\\ude00", "n": 1e400}')
    assert read_object(tmp_path / "a.json") == {"a": [1, {"b": None}], "ü": "😀", "n": float("inf")}
    assert parse_object(b'{"a":' * 64 + b"1" + b"}" * 64)
