"""Plain lines where there is no terminal, bars where there is one."""

from __future__ import annotations

import contextlib
import os
import pty
import sys

import pytest

from launcher import progress
from launcher.progress import Progress, outliving_the_terminal


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now_s)


def test_a_line_every_few_seconds_and_one_at_the_end_of_each_phase(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with Progress() as bar:
        for done in range(11):
            bar.update("clips", done, 10, "1 rejected" if done > 5 else "")
            clock.now_s += 2
        bar.update("checks", 1, 1)
    assert capsys.readouterr().out.splitlines() == [
        "clips: 3/10, 6 s, about 14 s left",
        "clips: 6/10, 12 s, about 8 s left, 1 rejected",
        "clips: 9/10, 18 s, about 2 s left, 1 rejected",
        "clips: 10/10, 22 s, 1 rejected",
        "checks: 1/1, 0 s",
    ]


def test_an_interrupted_phase_still_says_how_far_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), Progress() as bar:
        bar.update("clips", 4, 10)
        raise KeyboardInterrupt
    assert capsys.readouterr().out.startswith("clips: 4/10")


def test_nothing_done_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress():
        pass
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Progress() as bar:
        bar.update("clips", 4, 10, "1 rejected")
        bar.update("clips", 10, 10, "1 rejected")
    shown = capsys.readouterr().out
    assert "10/10" in shown
    assert "1 rejected" in shown
    assert "\x1b[" in shown


def test_what_was_done_before_does_not_shorten_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with Progress() as bar:
        bar.update("steps", 160, 320)
        clock.now_s += 10
        bar.update("steps", 180, 320)
    assert capsys.readouterr().out.splitlines() == ["steps: 180/320, 10 s, about 70 s left"]


@pytest.mark.parametrize(("pace_s", "left"), [(1, "90 s"), (10, "15 min"), (130, "3 h 15 min")])
def test_the_time_left_is_told_as_people_say_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pace_s: int, left: str
) -> None:
    clock = Clock(monkeypatch)
    with Progress() as bar:
        bar.update("clips", 0, 100)
        clock.now_s += 10 * pace_s
        bar.update("clips", 10, 100)
    assert f"about {left} left" in capsys.readouterr().out


def test_a_terminal_that_is_gone_hides_nothing(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setattr(sys, "stderr", terminal)
        with pytest.raises(KeyboardInterrupt, match="saved"), Progress() as bar:
            bar.update("clips", 4, 10)
            os.close(ours)
            raise KeyboardInterrupt("saved")
        with pytest.raises(OSError, match="Input/output"):
            print("it is gone", flush=True)
        with outliving_the_terminal(), Progress() as bar:
            bar.update("clips", 5, 10)
            print("a rank's own line", flush=True)
            print("and its last", file=sys.stderr, flush=True)
            bar.update("clips", 10, 10)
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            terminal.close()
    assert capfd.readouterr() == ("", "")
