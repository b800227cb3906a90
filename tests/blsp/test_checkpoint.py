from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from blsp import checkpoint
from blsp.checkpoint_folder import TrainingState, changed_fields, newest_valid, read_state

pytestmark = pytest.mark.usefixtures("alone")


class Engine:
    """Writes files as DeepSpeed does, scripts beside them too."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails

    def save_checkpoint(self, folder: str, *, tag: str, save_latest: bool) -> None:
        assert not save_latest
        (Path(folder) / tag).mkdir()
        (Path(folder) / tag / "rank_0_states.pt").write_bytes(bytes(range(50)))
        (Path(folder) / "zero_to_fp32.py").write_text("print('a script')")
        if self.fails:
            raise OSError(28, "No space left on device")
        (Path(folder) / tag / "rank_1_states.pt").write_bytes(bytes(range(50, 100)))


FROZEN = {"llm": "Qwen2.5-7B-Instruct@0123456789ab", "encoder": "whisper-large-v2@0123456789ab"}


def state(step: int) -> TrainingState:
    return TrainingState(step, "0123456789abcdef", 2, {"optim": {"steps": 10}}, FROZEN)


def save(folder: Path, *steps: int, keep: int = 10, fails: bool = False) -> None:
    for step in steps:
        checkpoint.save(Engine(fails), folder, state(step), keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_holds_the_state_and_nothing_that_runs(tmp_path: Path) -> None:
    save(tmp_path / "c", 20)
    files = {str(path.relative_to(tmp_path / "c")) for path in (tmp_path / "c").rglob("*") if path.is_file()}
    assert files == {
        "step-000020/manifest.json", "step-000020/state.json", "step-000020/zero/rank_0_states.pt",
        "step-000020/zero/rank_1_states.pt",
    }  # fmt: skip
    assert read_state(tmp_path / "c" / "step-000020") == state(20)


def test_the_place_in_the_plan_is_small(tmp_path: Path) -> None:
    content = vars(TrainingState(10**9, "0123456789abcdef", 10**4, {}, FROZEN))
    assert len(json.dumps(content)) < 512


def test_the_newest_are_kept(tmp_path: Path) -> None:
    save(tmp_path / "c", 5, 10, 15, 20, keep=2)
    assert names(tmp_path / "c") == ["step-000015", "step-000020"]
    assert newest_valid(tmp_path / "c") == tmp_path / "c" / "step-000020"


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


def test_the_same_step_can_be_saved_again(tmp_path: Path) -> None:
    save(tmp_path / "c", 5, 5)
    assert names(tmp_path / "c") == ["step-000005"]


def test_without_any_there_is_none(tmp_path: Path) -> None:
    assert newest_valid(tmp_path / "c") is None


def test_a_save_that_fails_is_not_there_and_the_next_one_is(tmp_path: Path) -> None:
    save(tmp_path / "c", 5)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path / "c", 10, fails=True)
    assert newest_valid(tmp_path / "c") == tmp_path / "c" / "step-000005"
    save(tmp_path / "c", 10)
    assert names(tmp_path / "c") == ["step-000005", "step-000010"]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: (folder / "zero" / "rank_1_states.pt").unlink(), "zero/rank_1_states.pt is missing"),
        (lambda folder: (folder / "zero" / "rank_1_states.pt").write_bytes(b"1" * 50), "rank_1_states.pt is not as it"),
        (lambda folder: (folder / "state.json").write_text("{"), "state.json is not as it was written"),
        (lambda folder: (folder / "manifest.json").unlink(), "its manifest.json cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "its manifest.json cannot be read"),
        (lambda folder: shutil.rmtree(folder / "zero"), "zero/rank_0_states.pt is missing"),
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


def test_no_flipped_bit_goes_unnoticed(tmp_path: Path) -> None:
    save(tmp_path / "c", 5, 10)
    newest = tmp_path / "c" / "step-000010"
    manifest = json.loads((newest / "manifest.json").read_text())
    for path in [path for path in newest.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        for i in range(len(content)):
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
