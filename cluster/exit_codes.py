"""What the exit code of a command, and of each rank of a training, says to scripts and schedulers."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The codes that are promised; docs/reliability.md tells users of them."""

    DONE = 0
    REFUSED = 1  # the machine refused (disk, memory, network), or a bug of ours, which keeps its traceback
    WRONG_INPUT = 2  # a recipe, data or an option: the same again would end the same way
    NOT_FINITE = 3  # a loss or gradient was not finite, or leapt, and the recipe says to stop then
    GIVEN_UP = 4  # the restarts are used up, or several in a row brought no newer checkpoint
    STOPPED = 75  # by SIGTERM or SIGUSR1, with everything saved: a scheduler may start the same command again
    CTRL_C = 130  # the same by hand; a second Ctrl-C ends it at once
    AT_ONCE = 143  # by a second signal, or by one before the first step: what was saved before stays as it is


# A rank that ends so has ended well, or would end the same way again; with any other code a restart may help.
FINAL = frozenset(ExitCode) - {ExitCode.REFUSED}
