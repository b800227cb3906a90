"""What counts as a checkpoint, which one is taken, and which are kept."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blsp import checkpoint_folder
from blsp.checkpoint_folder import changed_fields, newest_valid, remove, write_manifest
from tests.blsp.test_checkpoint import names, save

pytestmark = pytest.mark.usefixtures("alone")


def test_the_newest_are_kept(tmp_path: Path) -> None:
    save(tmp_path / "c", 5, 10, 15, 20, keep=2)
    assert names(tmp_path / "c") == ["step-000015", "step-000020"]
    assert newest_valid(tmp_path / "c") == tmp_path / "c" / "step-000020"


def test_a_damaged_one_does_not_count_as_kept(tmp_path: Path) -> None:
    save(tmp_path / "c", 5, 10)
    os.truncate(tmp_path / "c" / "step-000010" / "zero" / "optim_states.pt", 10)
    save(tmp_path / "c", 15, keep=2)
    assert names(tmp_path / "c") == ["step-000005", "step-000010", "step-000015"]


def test_going_back_never_deletes_what_was_gone_back_to(tmp_path: Path) -> None:
    save(tmp_path / "c", 5, 10, 15, keep=3)
    for name in ("step-000010", "step-000015"):
        (tmp_path / "c" / name / "state.json").write_text("{")
    assert newest_valid(tmp_path / "c", lambda said: None) == tmp_path / "c" / "step-000005"
    save(tmp_path / "c", 7, keep=1)
    assert newest_valid(tmp_path / "c", lambda said: None) == tmp_path / "c" / "step-000007"


def test_when_all_are_damaged_nothing_begins_anew_by_itself(tmp_path: Path) -> None:
    save(tmp_path / "c", 5)
    (tmp_path / "c" / "step-000005" / "state.json").write_text("{")
    with pytest.raises(ValueError, match="none of its checkpoints is whole"):
        newest_valid(tmp_path / "c")


def test_without_any_there_is_none(tmp_path: Path) -> None:
    assert newest_valid(tmp_path / "c") is None


def test_a_leftover_that_cannot_be_deleted_is_in_no_removals_way(tmp_path: Path) -> None:
    save(tmp_path / "c", 5)
    (tmp_path / "c" / ".step-000005.0.old" / "busy").mkdir(parents=True)
    remove(tmp_path / "c" / "step-000005")
    assert names(tmp_path / "c") == [".step-000005.0.old"]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: (folder / "zero" / "optim_states.pt").unlink(), "zero/optim_states.pt is missing"),
        (lambda folder: (folder / "zero" / "optim_states.pt").write_bytes(b"1" * 50), "optim_states.pt is not as it"),
        (lambda folder: (folder / "state.json").write_text("{"), "state.json is not as it was written"),
        (lambda folder: (folder / "manifest.json").unlink(), "its manifest.json cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "its manifest.json cannot be read"),
        (lambda folder: shutil.rmtree(folder / "zero"), "zero/model_states.pt is missing"),
    ],
)
def test_a_damaged_one_is_named_and_the_one_before_is_used(tmp_path: Path, damage: Any, problem: str) -> None:
    save(tmp_path / "c", 5, 10)
    damage(tmp_path / "c" / "step-000010")
    said: list[str] = []
    assert newest_valid(tmp_path / "c", said.append) == tmp_path / "c" / "step-000005"
    assert len(said) == 1
    assert said[0].startswith(f"{tmp_path / 'c' / 'step-000010'} is damaged (")
    assert problem in said[0]


@pytest.mark.parametrize("lost", ["zero", "state.json"])
def test_one_without_weights_or_a_place_in_the_plan_is_damaged_whatever_its_manifest_says(
    tmp_path: Path, lost: str
) -> None:
    save(tmp_path / "c", 5, 10)
    newest = tmp_path / "c" / "step-000010"
    (newest / lost).rename(tmp_path / "lost")
    write_manifest(newest)
    said: list[str] = []
    assert newest_valid(tmp_path / "c", said.append) == tmp_path / "c" / "step-000005"
    assert "names no weights, or no state.json" in said[0]


@pytest.mark.slow
def test_no_flipped_bit_goes_unnoticed(tmp_path: Path) -> None:
    save(tmp_path / "c", 5, 10)
    newest = tmp_path / "c" / "step-000010"
    manifest = json.loads((newest / "manifest.json").read_text())
    for path in [path for path in newest.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        for i in range(0, len(content), 1 if path.suffix == ".json" else 31):
            path.write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
            said: list[str] = []
            found = newest_valid(tmp_path / "c", said.append)
            assert found == tmp_path / "c" / "step-000005" or _says_less(path, manifest), (path, i)
        path.write_bytes(content)
    assert newest_valid(tmp_path / "c") == newest


def _says_less(path: Path, manifest: dict[str, Any]) -> bool:
    """A manifest whose flipped bit turned one file's name into the other's: what it still says is true."""
    return path.name == "manifest.json" and json.loads(path.read_text()).items() <= manifest.items()


def test_changes_between_recipes_are_named_by_field() -> None:
    before = {"a": {"x": 1, "y": [1, 2]}, "b": None}
    assert changed_fields(before, before) == []
    assert changed_fields(before, {"a": {"x": 2, "y": [1]}, "c": 3}, "model.") == [
        "model.a.x: 1 -> 2", "model.a.y: [1, 2] -> [1]", "model.c: None -> 3"
    ]  # fmt: skip


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def damaged(data: st.DataObject, before: bytes) -> bytes:
    """Some bytes lost, zeroed, replaced or added."""
    first = data.draw(st.integers(0, len(before) - 1))
    last = data.draw(st.integers(first + 1, len(before)))
    others = data.draw(st.binary(min_size=1, max_size=20))[: last - first]
    return data.draw(
        st.sampled_from(
            [
                before[:first], before[:first] + bytes(last - first) + before[last:],
                before[:first] + others + before[first + len(others) :], before + before[first:last],
            ]
        )
    )  # fmt: skip


def test_bytes_that_are_lost_zeroed_or_others_anywhere_are_found_and_the_one_before_is_used(tmp_path: Path) -> None:
    older, newer = tmp_path / "c" / "step-000005", tmp_path / "c" / "step-000010"
    save(tmp_path / "c", 5, 10)

    @settings(max_examples=100, deadline=None)
    @given(data=st.data())
    def found(data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(files_of(newer)))
        before, said = path.read_bytes(), []
        after = damaged(data, before)
        path.write_bytes(after)
        try:
            newest = newest_valid(tmp_path / "c", said.append)
        finally:
            path.write_bytes(before)
        if newest == newer:  # nothing has changed, or what the manifest still says is true
            assert after == before or json.loads(after).items() <= json.loads(before).items()
        else:
            assert newest == older
            assert said[0].startswith(f"{newer} is damaged (")
            assert path.name in said[0] or path.name == "manifest.json"  # it may name what it should list

    found()


def test_a_file_that_cannot_be_read_is_damage_and_the_one_before_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "c", 5, 10)
    digest, said = checkpoint_folder.file_hash, []

    def unreadable(path: Path) -> str:
        if path.match("step-000010/zero/optim_states.pt"):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return digest(path)

    monkeypatch.setattr(checkpoint_folder, "file_hash", unreadable)
    monkeypatch.setattr("cluster.files._PAUSES_S", (0.0,))
    assert newest_valid(tmp_path / "c", said.append) == tmp_path / "c" / "step-000005"
    assert "zero/optim_states.pt cannot be read (input/output error)" in said[0]
