"""What a person sees when something goes wrong: one sentence, and an exit code that scripts can tell apart.

2: the input is wrong (ValueError). 1: the machine refused (OSError). 3: a number left its range (FloatingPointError).
130: stopped with Ctrl-C; 75 and 143: by another signal. Anything else is a bug of ours and keeps its traceback. What
files of others say is repeated without control characters, which a terminal would obey.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster.exit_codes import ExitCode
from cluster.stop import Stopped
from cluster.terminal import plain

# What is true after Ctrl-C, by the kind of command.
GOES_ON = "the same command goes on from the newest checkpoint"
BEGINS_ANEW = "the same command begins anew"


@contextmanager
def on_ctrl_c(sentence: str) -> Iterator[None]:
    """Says `sentence` when the block is stopped with Ctrl-C, unless what was stopped has a better one."""
    try:
        yield
    except Stopped:
        raise
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(str(stop) or sentence) from None


def exit_code_of(action: Callable[[], int | None], *, debug: bool, name: str = "blsp") -> int:
    """Runs `action`; on an error prints one sentence to stderr, or raises it when `debug`. Returns the exit code."""
    try:
        return action() or 0
    except KeyboardInterrupt as stop:
        print(f"{name}: {str(stop) or 'stopped'}", file=sys.stderr)
        return stop.exit_code if isinstance(stop, Stopped) else ExitCode.CTRL_C
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has left; without this Python complains again while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, FloatingPointError) as error:
        if debug:
            raise
        sentence = sentence_of(error) or ""
        # Several errors are several lines that each begin with their file.
        print(sentence if "\n" in sentence else f"{name}: {sentence}", file=sys.stderr)
        return code_of(error)


def code_of(error: Exception) -> ExitCode:
    """What a process that is ended by `error` says to scripts."""
    if isinstance(error, ValueError):
        return ExitCode.WRONG_INPUT
    return ExitCode.NOT_FINITE if isinstance(error, FloatingPointError) else ExitCode.REFUSED


def sentence_of(error: Exception) -> str | None:
    """What it says to people; None of a bug of ours, which has a traceback instead."""
    if not isinstance(error, ValueError | OSError | FloatingPointError):
        return None
    return plain(_sentence(error))


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"{where}no space left on the disk; free some and run the same command again"
        return where + error.strerror[0].lower() + error.strerror[1:]
    return str(error) or f"{type(error).__name__} (--debug shows where)"
