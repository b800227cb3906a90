from __future__ import annotations

import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from blsp.tracking import Tracker


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


def test_a_line_can_be_read_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, 0)
    tracker.log(1, {"loss": 1.0})
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


def test_tensorboard_shows_the_same_curve(tmp_path: Path) -> None:
    log(tmp_path, 0, range(1, 8))
    log(tmp_path, 5, range(6, 9), offset=100.0)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (line["step"], line["loss"]) for line in lines(tmp_path)
    ]
