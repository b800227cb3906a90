"""What somebody else may have put into the files of a run: a checkpoint's, an export's, the log's."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from blsp.checkpoint_folder import STATE, committed, damage, newest_valid, prune, read_state, write_manifest
from blsp.export import EXPORT_CONFIG, export_config
from blsp.tracking import Tracker, read_log
from blsp.weight_files import load_tensors, stored_tensors
from launcher import checkpoints
from tests.blsp.test_handover import checkpoint, recipe
from tests.bounds import bounded

DEEP = "[" * 100_000


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two checkpoints."""
    made = recipe(tmp_path, "run")
    for step in (2, 4):
        checkpoint(made, step)
    return made.run


MANIFESTS: dict[str, Any] = {
    "brackets": DEEP,
    "a list": "[]",
    "a number for a file": '{"zero/x.pt": 3}',
    "no sizes": '{"zero/x.pt": {}}',
    "a file beside": '{"../step-000002/state.json": {"bytes": 1, "blake2b": ""}}',
    "a file of the system": '{"/etc/passwd": {"bytes": 1, "blake2b": ""}}',
    "a name without end": json.dumps({"x" * 5000: {"bytes": 1, "blake2b": ""}}),
    "the end of a name": '{"a\\u0000b": {"bytes": 1, "blake2b": ""}}',
    "half a character": '{"\\ud800": {"bytes": 1, "blake2b": ""}}',
    "words to a terminal": '{"\\u001b[2J": {"bytes": 1, "blake2b": ""}}',
    "a file under a file": '{"state.json/x": {"bytes": 1, "blake2b": ""}}',
    "nothing": "{}",
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_manifest_of_nonsense_is_damage_and_the_checkpoint_before_is_used(
    run: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    newest = run / "checkpoints" / "step-000004"
    (newest / "manifest.json").write_text(MANIFESTS[kind])
    assert newest_valid(run / "checkpoints") == run / "checkpoints" / "step-000002"
    said = capsys.readouterr().out
    assert said.startswith(f"{newest} is damaged (") and said.strip().isprintable() and len(said) < 6000


STATES: dict[str, Any] = {
    "brackets": DEEP,
    "deep in a recipe": f'{{"step": 4, "plan_hash": "x", "world_size": 1, "recipe": {"[" * 200}{"]" * 200}}}',
    "a step back": {"step": -1}, "no step": {"step": "4"}, "a truth": {"step": True}, "all steps": {"step": 10**400},
    "no ranks": {"world_size": None}, "many ranks": {"world_size": 10**12}, "no recipe": {"recipe": [1]},
    "no hashes": {"frozen": {"llm": 3}}, "no sums": {"sums": 3}, "no time": {"saved_at_s": "now"},
    "never": {"saved_at_s": 1e300}, "not a number": {"saved_at_s": float("nan")}, "no best": {"best": 5},
    "an empty best": {"best": {}}, "no clips": {"data": []}, "more": {"more": 1}, "no hash": {"plan_hash": 0},
}  # fmt: skip


@pytest.mark.parametrize("kind", STATES)
def test_a_state_of_nonsense_is_a_sentence_for_whoever_reads_it(
    run: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    newest, told = run / "checkpoints" / "step-000004", STATES[kind]
    before = json.loads((newest / STATE).read_text())
    (newest / STATE).write_text(told if isinstance(told, str) else json.dumps(before | told))
    write_manifest(newest)
    with pytest.raises(ValueError, match=r"state\.json: is not the state of a training run") as refused:
        read_state(newest)
    assert len(str(refused.value)) < 500
    checkpoints.show(run)
    assert "is not the state of a training run" in " ".join(capsys.readouterr().out.split())


def test_what_is_not_named_as_a_checkpoint_is_none_and_steps_beyond_a_million_are_in_order(run: Path) -> None:
    folder = run / "checkpoints"
    for name in ("step-1x2", "step-000003.0", "step-12", f"step-{'9' * 300}", "step-000004 (copy 2"):
        (folder / name[:255]).mkdir()
    (folder / "step-000002").rename(folder / "step-999999")
    (folder / "step-000004").rename(folder / "step-1000000")
    assert [path.name for path in committed(folder)] == ["step-999999", "step-1000000"]
    assert newest_valid(folder) == folder / "step-1000000"
    prune(folder, 1_000_000, keep=2)
    assert len(committed(folder)) == 2
    prune(folder, 1_000_000, keep=1)
    assert [path.name for path in committed(folder)] == ["step-1000000"]


def test_a_link_in_a_checkpoints_place_is_removed_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (run / "checkpoints" / "step-000001").symlink_to(tmp_path / "precious")
    prune(run / "checkpoints", 4, keep=1)
    assert (tmp_path / "precious" / "file").exists()
    assert [path.name for path in committed(run / "checkpoints")] == ["step-000004"]


def test_a_pipe_in_a_files_place_is_damage(run: Path) -> None:
    newest = run / "checkpoints" / "step-000004"
    (newest / "manifest.json").unlink()
    os.mkfifo(newest / "manifest.json")
    assert "cannot be read" in (damage(newest) or "")


@pytest.mark.parametrize(
    "content",
    [DEEP, "{", "[]", "{}", '{"model": 3, "stage": {}, "frozen": {}, "parts": []}',
     '{"model": {}, "stage": {"prompts": {}}, "frozen": {}, "parts": []}',
     '{"model": {"audio_window": "30s"}, "stage": {"prompts": []}, "frozen": {}, "parts": []}'],
)  # fmt: skip
def test_an_export_that_says_nonsense_is_a_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / EXPORT_CONFIG).write_text(content)
    with pytest.raises(ValueError, match=r"config\.json: "):
        export_config(tmp_path)


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + data


def floats(begin: int, end: int, shape: list[int] | None = None) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape or [(end - begin) // 4], "data_offsets": [begin, end]}


WEIGHTS: dict[str, Any] = {
    "nothing": b"",
    "a header of 2^60": safetensors(b"{}", length=2**60),
    "a header of 2^64": safetensors(b"{}", length=2**64 - 1),
    "a header of 17 MiB": lambda: safetensors({"__metadata__": {"a": "x" * 17 * 2**20}}),
    "many tensors": safetensors(b"{" + b'"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},' * 350_000 + b"}"),
    "tensors in each other": safetensors({"a": floats(0, 16), "b": floats(8, 24)}, bytes(24)),
    "tensors on each other": safetensors({"a": floats(0, 16), "b": floats(0, 16)}, bytes(16)),
    "a hole": safetensors({"a": floats(0, 8), "b": floats(16, 24)}, bytes(24)),
    "an end before its beginning": safetensors({"a": floats(8, 0, [2])}, bytes(8)),
    "an end beyond the file": safetensors({"a": floats(0, 2**40)}, bytes(8)),
    "a shape beyond all": safetensors({"a": floats(0, 8, [2**62, 4])}, bytes(8)),
    "a shape below nothing": safetensors({"a": floats(0, 4, [-1])}, bytes(4)),
    "brackets": safetensors(b'{"a":' + b"[" * 10**6),
    "no JSON": safetensors(b"\x80\x04\x95" * 100),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_header_bomb_is_refused_within_two_seconds_and_50_megabytes(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    content = WEIGHTS[kind]
    path.write_bytes(content() if callable(content) else content)
    for read in (lambda: load_tensors(path), lambda: stored_tensors(tmp_path)):
        ended = bounded(read, seconds=2, megabytes=50)
        assert (ended.error, ended.said.startswith(f"{path}: ")) == ("ValueError", True)


def test_a_header_as_models_have_it_is_read(tmp_path: Path) -> None:
    tensors = {f"model.layers.{i}.self_attn.q_proj.weight": torch.full((1,), float(i)) for i in range(2000)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert load_tensors(tmp_path / "model.safetensors") == load_file(tmp_path / "model.safetensors") == tensors


LOG = [
    DEEP, "{", "3", "[]", "{}", '{"step": "4"}', '{"step": true}', '{"step": 1.5}', '{"loss": 1}', "\x00",
    '{"step": ' + "9" * 5000 + "}",
]  # fmt: skip


def test_lines_of_nonsense_in_a_log_are_left_out_and_end_no_training(tmp_path: Path) -> None:
    told = ['{"step": 1, "pace/steps_s": "x"}', '{"step": 2, "pace/steps_s": 1e400, "loss": 3.0}']
    (tmp_path / "log.jsonl").write_text("\n".join([*LOG, *told, *LOG]) + "\n")
    (tmp_path / "launches.jsonl").write_text('{"step": 0, "time_s": []}\n{"step": 0, "time_s": -1e400}\n')
    assert [record["step"] for record in read_log(tmp_path / "log.jsonl")] == [1, 2]
    said: list[str] = []
    tracker = Tracker(tmp_path, 2, said.append)
    tracker.log(3, {"loss": 1.0, "pace/steps_s": 1.0})
    tracker.close()
    assert said == []
    assert [record["step"] for record in read_log(tmp_path / "log.jsonl")] == [1, 2, 3]
