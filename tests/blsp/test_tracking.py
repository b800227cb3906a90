from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from blsp import tracking
from blsp.follow import follow
from blsp.tracking import Tracker
from cluster.owner import TakenOverError
from tests.blsp.test_checkpoint import no_file_larger_than

# TensorBoard's own thread raises what its disk says, after it has noted it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


def log(run: Path, start_step: int, steps: range, offset: float = 0.0) -> None:
    tracker = Tracker(run, start_step)
    for step in steps:
        tracker.log(step, {"loss": step + offset, "lr_adapter": 0.5})
    tracker.close()


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_a_line_holds_the_step_and_every_scalar(tmp_path: Path) -> None:
    log(tmp_path, 0, range(1, 3))
    assert lines(tmp_path) == [
        {"step": 1, "loss": 1.0, "lr_adapter": 0.5},
        {"step": 2, "loss": 2.0, "lr_adapter": 0.5},
    ]


def test_a_line_can_be_read_soon_after_it_is_logged(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, 0)
    tracker.log(1, {"loss": 1.0})
    deadline_s = time.monotonic() + 10
    while not lines(tmp_path) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert lines(tmp_path) == [{"step": 1, "loss": 1.0}]
    tracker.close()


def test_what_came_after_the_checkpoint_is_dropped(tmp_path: Path) -> None:
    log(tmp_path, 0, range(1, 8))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    log(tmp_path, 5, range(6, 9), offset=100.0)
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [
        *((step, float(step)) for step in range(1, 6)),
        *((step, step + 100.0) for step in range(6, 9)),
    ]


def test_lines_that_are_torn_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo{"step": 2, "loss": 9.0}\n5\n')
    log(tmp_path, 2, range(3, 4))
    assert [line["step"] for line in lines(tmp_path)] == [1, 3]


@pytest.mark.parametrize("torn", ["", '{"time_s": 17'])
def test_a_torn_list_of_launches_does_not_end_the_log(tmp_path: Path, torn: str) -> None:
    (tmp_path / "launches.jsonl").write_text(torn)
    for start in (0, 1):
        log(tmp_path, start, range(start + 1, start + 2))
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]
    assert [launch["step"] for launch in tracking.read_log(tmp_path / "launches.jsonl")] == [0, 1]


def test_a_disk_that_fills_up_at_a_start_leaves_the_log_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log(tmp_path, 0, range(1, 4))
    monkeypatch.setattr("cluster.files.os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space")))
    warnings: list[str] = []
    Tracker(tmp_path, 2, warnings.append).close()
    assert "No space" in warnings[0]
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_tensorboard_shows_the_same_curve(tmp_path: Path) -> None:
    log(tmp_path, 0, range(1, 8))
    log(tmp_path, 5, range(6, 9), offset=100.0)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (line["step"], line["loss"]) for line in lines(tmp_path)
    ]


def test_goodput_counts_the_steps_that_stayed_and_all_time_since_the_first_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr(tracking.time, "time", lambda: now_s)
    first = Tracker(tmp_path, 0)
    for step in (1, 2):
        now_s += 10
        first.log(step, {"pace/steps_s": 8.0})
    first.close()
    now_s += 30  # until somebody starts it again, from the checkpoint of step 1
    second = Tracker(tmp_path, 1)
    now_s += 10
    second.log(2, {"pace/steps_s": 9.0})
    second.close()
    assert [line["pace/goodput"] for line in lines(tmp_path)] == [8 / 10, 17 / 60]


def test_a_tensorboard_folder_that_cannot_be_written_is_a_warning_and_the_log_is_written(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    warnings: list[str] = []
    tracker = Tracker(tmp_path, 0, warnings.append)
    for step in range(1, 4):
        tracker.log(step, {"loss": 1.0})
    tracker.close()
    (warning,) = warnings
    assert f"{tmp_path}: TensorBoard's files cannot be written (" in warning
    assert "log.jsonl has the figures" in warning
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_a_log_that_cannot_be_opened_is_a_warning_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").mkdir()
    warnings: list[str] = []
    tracker = Tracker(tmp_path, 0, warnings.append)
    tracker.log(1, {"loss": 1.0})
    tracker.close()
    (warning,) = warnings
    assert f"{tmp_path}: the log cannot be written (" in warning
    assert "training goes on without it" in warning


def test_pictures_that_cannot_be_written_are_a_warning_and_the_rest_is_written(tmp_path: Path) -> None:
    warnings: list[str] = []
    tracker = Tracker(tmp_path, 0, warnings.append)

    def break_down(writer: Any) -> None:
        raise OSError(28, "No space left on device")

    for step in range(1, 4):
        tracker.show(break_down)
        tracker.log(step, {"loss": float(step)})
    tracker.close()
    assert len(warnings) == 1
    assert "TensorBoard's files cannot be written ([Errno 28] No space left on device)" in warnings[0]
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")][-1] == 3


def wait_for(said: list[str]) -> None:
    until_s = time.monotonic() + 10
    while not said and time.monotonic() < until_s:
        time.sleep(0.01)


def test_lines_that_a_full_disk_did_not_take_are_written_when_it_has_room_and_none_is_torn(tmp_path: Path) -> None:
    log(tmp_path, 0, range(1, 3))
    warnings: list[str] = []
    tracker = Tracker(tmp_path, 2, warnings.append)
    with no_file_larger_than((tmp_path / "log.jsonl").stat().st_size + 20):
        tracker.log(3, {"loss": 3.0, "lr_adapter": 0.5})
        tracker.log(4, {"loss": 4.0, "lr_adapter": 0.5})
        wait_for(warnings)
    tracker.log(5, {"loss": 5.0, "lr_adapter": 0.5})
    tracker.close()
    assert "log.jsonl cannot be written ([Errno 27] File too large); its lines are kept and tried again" in warnings[0]
    assert lines(tmp_path) == [{"step": step, "loss": float(step), "lr_adapter": 0.5} for step in range(1, 6)]


def test_a_log_whose_folder_is_removed_begins_anew_in_the_new_one(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    tracker = Tracker(run, 0, still_owned=lambda: run.mkdir(exist_ok=True))
    tracker.log(1, {"loss": 1.0})
    until_s = time.monotonic() + 10
    while not lines(run) and time.monotonic() < until_s:
        time.sleep(0.01)
    shutil.rmtree(run.rename(tmp_path / "removed"), ignore_errors=True)  # it may be writing
    tracker.log(2, {"loss": 2.0})
    tracker.close()
    assert lines(run) == [{"step": 2, "loss": 2.0}]


def test_a_folder_that_is_missing_for_a_while_costs_no_line(tmp_path: Path) -> None:
    run, said, looks = tmp_path / "run", list[str](), list[int]()

    def still_owned() -> None:
        looks.append(len(looks))
        if not run.exists() and len(looks) > 3:
            run.mkdir()

    tracker = Tracker(run, 0, said.append, still_owned)
    tracker.log(1, {"loss": 1.0})
    while not looks or not lines(run):
        time.sleep(0.01)
    shutil.rmtree(run.rename(tmp_path / "removed"), ignore_errors=True)
    for step in (2, 3, 4):
        tracker.log(step, {"loss": float(step)})
    tracker.close()
    assert [line["step"] for line in lines(run)] == [2, 3, 4]
    assert len([sentence for sentence in said if "its lines are kept and tried again" in sentence]) == 1


def test_a_disk_that_hangs_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_PATIENCE_S", 0.05)
    warnings: list[str] = []
    tracker, hangs = Tracker(tmp_path, 0, warnings.append), threading.Event()
    tracker.show(lambda writer: hangs.wait())  # type: ignore[arg-type, return-value]
    began_s = time.monotonic()
    for step in range(1500):
        tracker.log(step, {"loss": 1.0})
    tracker.close()
    assert time.monotonic() - began_s < 5
    hangs.set()
    assert len(warnings) == 1
    assert "does not keep up, and lines of the log get lost" in warnings[0]


def test_another_tracker_follows_the_log_through_a_resume(tmp_path: Path) -> None:
    """As docs/training.md shows it for MLflow and W&B."""
    log(tmp_path, 0, range(1, 8))
    told = []
    for line in follow(tmp_path, idle_s=0.4):
        told.append((line["step"], line["loss"]))
        if line["step"] == 7:
            threading.Thread(target=log, args=(tmp_path, 5, range(6, 10)), daemon=True).start()
    assert told == [(step, float(step)) for step in range(1, 10)]


def test_who_was_taken_over_adds_no_line(tmp_path: Path) -> None:
    said: list[str] = []
    owned = mock.Mock(side_effect=[None, TakenOverError("taken over by process 7")])
    tracker = Tracker(tmp_path, 0, said.append, owned)
    tracker.log(1, {"loss": 1.0})
    tracker.log(2, {"loss": 2.0})
    tracker.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1]
    assert "taken over by process 7" in said[0]
