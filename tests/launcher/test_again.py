"""`blsp replay` as people type it; tests/blsp/test_validate.py runs past steps of real runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from blsp import past_step
from blsp.past_step import PastStep
from launcher import start
from launcher.cli import main


def blsp(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["blsp", "replay", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Path, int, Path]]:
    """What is asked of the function behind the verb; nothing is trained, and only step 7 was logged."""
    calls: list[tuple[Path, int, Path]] = []

    def replay_step(run: Path, step: int, out: Path, on_step: Any) -> PastStep:
        calls.append((run, step, out))
        if step > 8:
            raise ValueError(f"step {step}: the log of {run} tells of steps 1 to 8; name one of them")
        on_step(step, step, "")
        clips = [{"id": f"clip-{n:02d}", "micro_batch": n, "seconds": 1.25, "loss": 3 - n / 8} for n in range(15)]
        logged = {"loss": 2.5, "grad_norm": 0.125} if step == 7 else {}
        return PastStep(step, "step-000005", 2.5, 0.125, logged, clips)

    monkeypatch.setattr(past_step, "replay_step", replay_step)
    monkeypatch.setattr(start, "environment", lambda processes: {})
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.chdir(tmp_path)
    return calls


def test_the_dearest_clips_are_shown_and_the_figures_beside_those_logged(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert blsp(monkeypatch, "runs/stage2", 7) == 0
    assert asked == [(Path("runs/stage2"), 7, Path("replays/stage2/step-000007"))]
    printed = capsys.readouterr().out
    assert "clip-00 0 1.2 3.0000" in " ".join(printed.split())
    assert ("clip-11" in printed, "clip-12" in printed) == (True, False)
    assert printed.splitlines()[-3:] == [
        "step 7, reached from step-000005: loss 2.5, gradient norm 0.125",
        "logged: loss 2.5, gradient norm 0.125",
        "replays/stage2/step-000007",
    ]


def test_a_step_without_a_line_goes_where_it_is_told(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert blsp(monkeypatch, "runs/stage2", 6, "here") == 0
    assert asked == [(Path("runs/stage2"), 6, Path("here"))]
    printed = capsys.readouterr().out
    assert "logged:" not in printed
    assert printed.endswith("here\n")


@pytest.mark.usefixtures("asked")
def test_a_step_that_the_log_does_not_tell_of_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert blsp(monkeypatch, "runs/stage2", 9) != 0
    assert "step 9: the log of runs/stage2 tells of steps 1 to 8; name one of them" in capsys.readouterr().err
