from __future__ import annotations

import json
import os
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from blsp import checkpoint, snapshot
from blsp.checkpoint import Report, Saver
from blsp.checkpoint_folder import TrainingState, newest_valid, read_state
from blsp.snapshot import SnapshotEngine
from cluster.owner import TakenOverError

pytestmark = pytest.mark.usefixtures("alone")


class Engine:
    """Saves two files as DeepSpeed does."""

    checkpoint_engine: Any = None

    def __init__(self) -> None:
        self.weights = torch.arange(5.0)

    def save_checkpoint(self, folder: str, *, tag: str, save_latest: bool, exclude_frozen_parameters: bool) -> None:
        assert not save_latest
        assert exclude_frozen_parameters
        engine, commit = self.checkpoint_engine, mock.Mock()
        engine.makedirs(f"{folder}/{tag}")
        engine.create(commit)
        for name in ("model_states", "optim_states"):
            engine.save(state_dict={name: self.weights}, path=f"{folder}/{tag}/{name}.pt")
        engine.commit(commit)


FROZEN = {"llm": "Qwen2.5-7B-Instruct@0123456789ab", "encoder": "whisper-large-v2@0123456789ab"}


def state(step: int) -> TrainingState:
    return TrainingState(step, "0123456789abcdef", 2, {"optim": {"steps": 10}}, FROZEN)


def save(folder: Path, *steps: int, keep: int = 10) -> None:
    saver = Saver(Engine(), folder, keep)  # type: ignore[arg-type]
    for step in steps:
        saver.save(state(step))
        saver.finish()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def slowed() -> Iterator[Callable[[], None]]:
    """Writing a file waits until it is allowed."""
    allowed, write = threading.Event(), snapshot.write_file

    def later(content: Any, path: Path) -> None:
        allowed.wait()
        write(content, path)

    with mock.patch.object(snapshot, "write_file", later):
        try:
            yield allowed.set
        finally:
            allowed.set()


def failing(error: Exception) -> Any:
    return mock.patch.object(torch, "save", side_effect=error)


def test_a_checkpoint_holds_weights_and_the_state(tmp_path: Path) -> None:
    save(tmp_path / "c", 20)
    files = {str(path.relative_to(tmp_path / "c")) for path in (tmp_path / "c").rglob("*") if path.is_file()}
    assert files == {
        "step-000020/manifest.json", "step-000020/state.json", "step-000020/zero/model_states.pt",
        "step-000020/zero/optim_states.pt",
    }  # fmt: skip
    assert read_state(tmp_path / "c" / "step-000020") == state(20)


def test_the_place_in_the_plan_is_small(tmp_path: Path) -> None:
    content = vars(TrainingState(10**9, "0123456789abcdef", 10**4, {}, FROZEN))
    assert len(json.dumps(content)) < 512


def test_training_goes_on_while_a_checkpoint_is_written_and_it_is_of_its_own_step(tmp_path: Path) -> None:
    engine = Engine()
    saver = Saver(engine, tmp_path / "c", 10)  # type: ignore[arg-type]
    with slowed() as let_it_write:
        saver.save(state(5))
        engine.weights += 100  # the next steps
        assert saver.report() == Report.NOTHING
        saver.hear([saver.report()])
        assert newest_valid(tmp_path / "c") is None
        let_it_write()
        saver.finish()
    newest = newest_valid(tmp_path / "c")
    assert newest is not None
    assert torch.equal(torch.load(newest / "zero" / "model_states.pt")["model_states"], torch.arange(5.0))


def test_nothing_is_committed_before_every_rank_has_written(tmp_path: Path) -> None:
    saver = Saver(Engine(), tmp_path / "c", 10)  # type: ignore[arg-type]
    saver.save(state(5))
    saver._thread.join()
    assert saver.report() == Report.READY
    saver.hear([Report.READY, Report.NOTHING])
    assert newest_valid(tmp_path / "c") is None
    saver.hear([Report.READY, Report.READY])
    saver._thread.join()
    assert newest_valid(tmp_path / "c") == tmp_path / "c" / "step-000005"


def test_the_memory_of_the_copies_is_used_again() -> None:
    engine = SnapshotEngine()
    first = engine._copied({"a": [torch.ones(3), 1], "b": (torch.zeros(2), torch.Size([2]))})
    engine.create(mock.Mock())
    second = engine._copied({"a": [torch.full((3,), 7.0), 1], "b": (torch.zeros(2), torch.Size([2]))})
    assert first["a"][0].data_ptr() == second["a"][0].data_ptr()
    assert second["a"][0].tolist() == [7, 7, 7]
    assert isinstance(second["b"][1], torch.Size)
    engine.create(mock.Mock())
    assert engine._copied(torch.arange(2, dtype=torch.int8)).dtype == torch.int8


def test_the_same_step_can_be_saved_again(tmp_path: Path) -> None:
    save(tmp_path / "c", 5, 5)
    assert names(tmp_path / "c") == ["step-000005"]


@contextmanager
def no_file_larger_than(num_bytes: int) -> Iterator[None]:
    """Longer ones end there, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_ends_in_the_middle_is_said_training_goes_on_and_the_next_checkpoint_is_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "c", 5)
    saver = Saver(Engine(), tmp_path / "c", 10)  # type: ignore[arg-type]
    with no_file_larger_than(700):
        saver.save(state(10))
        saver.flush()
    said = capsys.readouterr().out
    assert f"{tmp_path / 'c' / 'step-000010'}: could not be written (file too large)" in said
    assert "training goes on" in said
    assert names(tmp_path / "c") == ["step-000005"]
    saver.save(state(15))
    saver.finish()
    assert names(tmp_path / "c") == ["step-000005", "step-000015"]


def test_a_folder_that_cannot_be_made_is_said_and_training_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saver = Saver(Engine(), tmp_path / "c", 10)  # type: ignore[arg-type]
    (tmp_path / "c").write_text("a file in its place")
    saver.save(state(10))
    assert "could not be written (not a directory)" in capsys.readouterr().out
    assert saver.report() == Report.NOTHING
    (tmp_path / "c").unlink()
    saver.save(state(15))
    saver.finish()
    assert names(tmp_path / "c") == ["step-000015"]


def test_a_last_checkpoint_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    save(tmp_path / "c", 5)
    saver = Saver(Engine(), tmp_path / "c", 10)  # type: ignore[arg-type]
    with failing(OSError(28, "No space left on device")):
        saver.save(state(10))
        with pytest.raises(OSError, match=r"could not be written.*earlier checkpoints are as they were"):
            saver.finish()
    assert newest_valid(tmp_path / "c") == tmp_path / "c" / "step-000005"


def test_another_ranks_full_disk_is_everybodys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saver = Saver(Engine(), tmp_path / "c", 10)  # type: ignore[arg-type]
    saver.save(state(10))
    saver._thread.join()
    saver.hear([saver.report(), Report.FAILED])
    assert "could not be written (rank 1 says why)" in capsys.readouterr().out
    assert names(tmp_path / "c") == []


def test_an_error_of_ours_in_the_writer_is_raised_in_the_next_step(tmp_path: Path) -> None:
    saver = Saver(Engine(), tmp_path / "c", 10)  # type: ignore[arg-type]
    with failing(KeyError("a bug")):
        saver.save(state(10))
        saver._thread.join()
        assert saver.report() == Report.FATAL
        with pytest.raises(KeyError, match="a bug"):
            saver.hear([saver.report()])


def test_and_on_the_other_ranks_too(tmp_path: Path) -> None:
    saver = Saver(Engine(), tmp_path / "c", 10)  # type: ignore[arg-type]
    saver.save(state(10))
    saver._thread.join()
    with pytest.raises(RuntimeError, match=r"step-000010: could not be written; rank 1 says why"):
        saver.hear([saver.report(), Report.FATAL])


def test_who_was_taken_over_commits_nothing(tmp_path: Path) -> None:
    saver = Saver(Engine(), tmp_path / "c", 10)  # type: ignore[arg-type]
    saver.save(state(10))
    saver.still_owned = mock.Mock(side_effect=TakenOverError("taken over by process 7"))
    with pytest.raises(ValueError, match="taken over by process 7"):
        saver.finish()
    assert newest_valid(tmp_path / "c") is None


@pytest.mark.parametrize(
    ("lose", "why"),
    [
        (lambda folder: (folder / "rank-0.json").unlink(), "the files of rank 0 are not in it"),
        (lambda folder: shutil.rmtree(folder), "the files of rank 0 are not in it"),
        (lambda folder: (folder / "zero" / "optim_states.pt").unlink(), "the files of rank 0 are not in it"),
        (lambda folder: os.truncate(folder / "zero" / "optim_states.pt", 9), "optim_states.pt of rank 0 is not as it"),
    ],
)
def test_without_the_files_of_every_rank_nothing_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lose: Any, why: str
) -> None:
    monkeypatch.setattr(checkpoint, "_PATIENCE_S", 0.02)
    save(tmp_path / "c", 5)
    saver = Saver(Engine(), tmp_path / "c", 1)  # type: ignore[arg-type]
    saver.save(state(10))
    saver._thread.join()
    lose(saver._temporary)
    with pytest.raises(OSError, match=why):
        saver.finish()
    assert names(tmp_path / "c") == ["step-000005"]


def test_another_hosts_files_may_be_seen_late(tmp_path: Path) -> None:
    saver = Saver(Engine(), tmp_path / "c", 1)  # type: ignore[arg-type]
    saver.save(state(10))
    saver._thread.join()
    path = saver._temporary / "rank-0.json"
    content = path.read_text()
    path.unlink()
    saver.hear([Report.READY])
    path.write_text(content)
    saver.finish()
    assert names(tmp_path / "c") == ["step-000010"]


def test_a_save_that_raises_leaves_nothing_that_could_be_committed(tmp_path: Path) -> None:
    save(tmp_path / "c", 5)
    engine = Engine()
    saver = Saver(engine, tmp_path / "c", 1)  # type: ignore[arg-type]
    with (
        mock.patch.object(engine, "save_checkpoint", side_effect=RuntimeError("no memory")),
        pytest.raises(RuntimeError, match="no memory"),
    ):
        saver.save(state(10))
    assert saver.report() == Report.NOTHING
    saver.finish()
    assert newest_valid(tmp_path / "c") == tmp_path / "c" / "step-000005"


def test_a_disk_that_is_full_before_the_first_file_is_said_and_passed_over(tmp_path: Path) -> None:
    save(tmp_path / "c", 5)
    saver, mkdir = Saver(Engine(), tmp_path / "c", 10), Path.mkdir  # type: ignore[arg-type]

    def full(folder: str | Path, *arguments: Any, **options: Any) -> None:
        if Path(folder).name == "zero":
            raise OSError(28, "No space left on device", str(folder))
        mkdir(Path(folder), *arguments, **options)

    with mock.patch.object(Path, "mkdir", full), mock.patch.object(os, "makedirs", side_effect=full):
        saver.save(state(10))
    assert "no space left on device" in saver.problem
    assert names(tmp_path / "c") == ["step-000005"]


def test_what_cannot_be_pruned_does_not_make_a_written_checkpoint_a_failed_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "c", 5)
    with mock.patch.object(checkpoint, "prune", side_effect=PermissionError(13, "Permission denied")):
        save(tmp_path / "c", 10, keep=1)
    assert (
        "step-000010: written, but the earlier ones could not be deleted (permission denied)" in capsys.readouterr().out
    )
    assert newest_valid(tmp_path / "c") == tmp_path / "c" / "step-000010"


def test_who_was_taken_over_in_its_sleep_touches_nothing_of_the_new_owners(tmp_path: Path) -> None:
    new, old = Saver(Engine(), tmp_path / "c", 1), Saver(Engine(), tmp_path / "c", 1)  # type: ignore[arg-type]
    old.claim, new.claim = 6, 7
    old.save(state(20))
    old._thread.join()
    new.save(state(20))  # sweeps what the old one has left
    new._thread.join()
    assert names(tmp_path / "c") == [".step-000020.000007.tmp"]
    with mock.patch.object(checkpoint, "_PATIENCE_S", 0.02):
        old.flush()
    old.save(state(25))  # it has asked and then slept
    old.still_owned = mock.Mock(side_effect=TakenOverError("taken over by process 7"))
    with pytest.raises(ValueError, match="taken over by process 7"):
        old.finish()
    with pytest.raises(ValueError, match="taken over by process 7"):
        old.save(state(30))
    new.finish()
    assert newest_valid(tmp_path / "c") == tmp_path / "c" / "step-000020"
    assert names(tmp_path / "c") == [".step-000025.000006.tmp", "step-000020"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            {"side_effect": RuntimeError("Missing key(s): adapter.weight")},
            r"step-000005: is not what DeepSpeed .*Missing",
        ),
        ({"return_value": (None, {})}, "step-000005: DeepSpeed finds nothing to load in its folder zero"),
    ],
)
def test_a_checkpoint_of_another_model_is_a_sentence(tmp_path: Path, answer: dict[str, Any], message: str) -> None:
    save(tmp_path / "c", 5)
    engine: Any = mock.Mock(load_checkpoint=mock.Mock(**answer))
    with pytest.raises(ValueError, match=message):
        checkpoint.load(engine, tmp_path / "c" / "step-000005")


def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    save(tmp_path / "c", 5)
    with (
        mock.patch.object(torch, "load", side_effect=OSError(5, "Input/output error")),
        pytest.raises(ValueError, match=r"_states\.pt: cannot be read \(input/output error\)"),
    ):
        checkpoint.load(mock.Mock(), tmp_path / "c" / "step-000005")
