"""One rank of a training, as an agent of `blsp train` starts it, or `deepspeed --hostfile hostfile --module
launcher.train --config RECIPE`."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from cluster.exit_codes import ExitCode
from cluster.heartbeat import is_watched
from cluster.stop import Stopped, stop_signals
from launcher.errors import GOES_ON, exit_code_of, on_ctrl_c
from launcher.progress import Progress, outliving_the_terminal
from launcher.quiet import silence_libraries
from launcher.telling import has_lost_contact, recording, telling

_PATIENCE_S = 4.0  # DeepSpeed looks after its processes once a second


def main() -> int:
    """Parses the command line and trains. Returns the exit code of this rank."""
    parser = argparse.ArgumentParser(prog="launcher.train", description="One rank of a training run.")
    parser.add_argument("--config", required=True, help="a recipe file or the name of a shipped recipe")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="replace values of the recipe")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("--local_rank", type=int, help="passed by DeepSpeed; the environment says it too")
    arguments = parser.parse_intermixed_args()
    rank = os.environ.get("RANK", "0")

    def action() -> None:
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        signals = stop_signals(process_ends=True)
        with signals, _one_voice(first), telling(arguments.debug), on_ctrl_c(f"stopped; {GOES_ON}"):
            _train(arguments.config, arguments.overrides)

    with outliving_the_terminal():
        return exit_code_of(action, debug=arguments.debug, name="blsp" if rank == "0" else f"blsp, rank {rank}")


@contextmanager
def _one_voice(first: bool) -> Iterator[None]:
    """Without an agent: most errors meet all ranks alike, so the first rank of a host says so at once and ends, and
    DeepSpeed then ends the others. One that is still there after a while has an error of its own."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if not first:
            sys.exit(stop.exit_code if isinstance(stop, Stopped) else ExitCode.CTRL_C)
        raise
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        if not first:
            time.sleep(_PATIENCE_S)
        if has_lost_contact(error):
            raise OSError(f"another rank ended, or its host is gone; {GOES_ON}") from error
        raise


def _train(config: str, overrides: list[str]) -> None:
    from blsp.recipe import TrainRecipe
    from cluster.interface import choose_interface
    from cluster.stacks import stacks_on_signal
    from launcher.recipe_files import load_kind

    recipe = load_kind(TrainRecipe, config, overrides)
    if os.environ.get("RANK") == "0" and "MASTER_PORT" in os.environ:
        _refuse_taken_port(int(os.environ["MASTER_PORT"]))
    if "MASTER_ADDR" in os.environ:
        choose_interface(os.environ, os.environ["MASTER_ADDR"])
    silence_libraries()
    from blsp.engine import train

    stacks = recipe.run / "stacks" / f"rank-{os.environ.get('RANK', '0')}.txt"
    with stacks_on_signal(stacks), recording(recipe.run), Progress() as progress:
        train(recipe, lambda done, total, note: progress.update(f"{recipe.run}: steps", done, total, note))


def _refuse_taken_port(port: int) -> None:
    from cluster.ports import refuse_taken_port

    try:
        refuse_taken_port(port)
    except ValueError as error:
        if not is_watched():
            raise
        # Nobody chose it but the agent, and the next attempt has another one.
        raise OSError(errno.EADDRINUSE, f"port {port} on this host was taken by another process") from error


def end_with(main: Callable[[], int]) -> NoReturn:
    """Ends this process with the exit code of `main`, after which nothing is left to tidy up. Python's own end would
    wait for threads and readers, and no signal could hurry it then."""
    code = int(ExitCode.REFUSED)
    try:
        code = main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        with suppress(OSError):
            traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    end_with(main)
