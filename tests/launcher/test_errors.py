"""One sentence and one exit code for each way in which a command can end."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from cluster.exit_codes import ExitCode
from cluster.stop import Stopped
from launcher.errors import exit_code_of


def raising(error: BaseException) -> Callable[[], int]:
    def action() -> int:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("the shard set is unfinished"), 2, "blsp: the shard set is unfinished\n"),
        (ValueError("a:1: x\nb:2: y"), 2, "a:1: x\nb:2: y\n"),
        (ValueError("a\x1b[2J\x07\r\tb\x9b: is no set"), 2, "blsp: a\\x1b[2J\\x07\\r\\tb\\x9b: is no set\n"),
        (ValueError(), 2, "blsp: ValueError (--debug shows where)\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.wav"), 1, "blsp: a.wav: no such file\n"),
        (OSError("some/llm is not on the hub"), 1, "blsp: some/llm is not on the hub\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), 1,
         "blsp: /data/x: no space left on the disk; free some and run the same command again\n"),
        (FloatingPointError("the loss of step 7 is nan"), 3, "blsp: the loss of step 7 is nan\n"),
        (KeyboardInterrupt(), 130, "blsp: stopped\n"),
        (KeyboardInterrupt("saved at step 7"), 130, "blsp: saved at step 7\n"),
        (Stopped("saved at step 7", ExitCode.STOPPED), 75, "blsp: saved at step 7\n"),
    ],
)  # fmt: skip
def test_an_error_is_a_sentence(error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(raising(error), debug=False) == code
    assert capsys.readouterr().err == said


def test_debug_keeps_the_traceback() -> None:
    with pytest.raises(ValueError, match="unfinished"):
        exit_code_of(raising(ValueError("unfinished")), debug=True)


def test_a_bug_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(AssertionError):
        exit_code_of(raising(AssertionError()), debug=False)


def test_success_is_zero_unless_the_action_says_otherwise() -> None:
    assert exit_code_of(lambda: None, debug=False) == 0
    assert exit_code_of(lambda: 3, debug=False) == 3
