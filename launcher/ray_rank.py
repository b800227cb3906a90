"""What runs on each host of `blsp shard` or `blsp eval` over many: its part of Ray, and on the first one the job."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from cluster.exit_codes import ExitCode
from cluster.heartbeat import beat
from cluster.lock import wait_until_free
from cluster.owner import ATTEMPT
from cluster.ray_node import ray_node, wait_while_there
from cluster.ray_session import ray_session, wait_for_nodes
from cluster.stop import STOP_SIGNALS, Stopped
from launcher.errors import exit_code_of

_LOST_LOCK_S = 120


def main() -> int:
    """Returns an exit code: the job's on the first host; on another 0 when the first has done with it."""
    parser = argparse.ArgumentParser(prog="launcher.ray_rank", description="One host of a job over many.")
    parser.add_argument("--config", required=True, help="a recipe file or the name of a shipped recipe")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="replace values of the recipe")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    arguments = parser.parse_intermixed_args()
    address, port, rank = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), int(os.environ["RANK"])
    signals = _Signals()

    def host() -> None:
        signals.listen()
        with ray_node(address, port, is_head=rank == 0) as node:
            beat("data", step=1)  # from now on the coordinator passes signals on to us
            if rank:
                wait_while_there(address, port, node)
                return
            with ray_session(f"{address}:{port}"):
                signals.listen()  # Ray has taken SIGTERM for itself
                wait_for_nodes(int(os.environ["WORLD_SIZE"]))
                _do(arguments.config, arguments.overrides)

    def work() -> int:
        try:
            host()
        except KeyboardInterrupt as stop:
            code = ExitCode.STOPPED if signals.first != signal.SIGINT else ExitCode.CTRL_C
            if rank:  # the first host says it
                return code
            raise Stopped(str(stop) or "stopped; the same command goes on", code) from None
        return ExitCode.DONE

    return exit_code_of(work, debug=arguments.debug)


class _Signals:
    """The first one ends the job as Ctrl-C does; then Ray is taken down, and at a second one the agent kills us."""

    first: int | None = None

    def listen(self) -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.first is None:
            self.first = number
            raise KeyboardInterrupt


def _do(config: str, overrides: list[str]) -> None:
    from blsp.recipe import EvalRecipe, ShardRecipe
    from launcher.recipe_files import load
    from shards.sets.store import is_url

    recipe = load(config, overrides)
    assert isinstance(recipe, ShardRecipe | EvalRecipe)
    # The attempt before may have lost the host that held the output.
    if int(os.environ[ATTEMPT]) > 1 and not is_url(str(recipe.out)):
        wait_until_free(Path(recipe.out), _LOST_LOCK_S)
    if isinstance(recipe, EvalRecipe):
        from launcher import use

        use.evaluate(recipe, over_ray=True)
    else:
        from launcher import data

        data.shard(recipe)


if __name__ == "__main__":
    sys.exit(main())
