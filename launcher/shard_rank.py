"""What runs on each host of `blsp shard` over many: a node of their Ray cluster, and on the first one the job."""

from __future__ import annotations

import argparse
import os
import sys

from cluster.exit_codes import ExitCode
from cluster.ray_node import ray_node, wait_while_there
from cluster.ray_session import ray_session, wait_for_nodes
from launcher.errors import exit_code_of, on_ctrl_c

_GOES_ON = "the same command goes on from the shards that are finished"


def main() -> int:
    """Returns an exit code: the job's on the first host; on another 0 when the first has done with it."""
    parser = argparse.ArgumentParser(prog="launcher.shard_rank", description="One host of a sharding job.")
    parser.add_argument("--config", required=True, help="a recipe file or the name of a shipped recipe")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="replace values of the recipe")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    arguments = parser.parse_intermixed_args()
    address, port, rank = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), int(os.environ["RANK"])

    def work() -> int:
        with ray_node(address, port, is_head=rank == 0) as node:
            if rank:
                return ExitCode.DONE if wait_while_there(address, port, node) else ExitCode.REFUSED
            with on_ctrl_c(f"stopped; {_GOES_ON}"), ray_session(f"{address}:{port}"):
                wait_for_nodes(int(os.environ["WORLD_SIZE"]))
                _shard(arguments.config, arguments.overrides)
        return ExitCode.DONE

    return exit_code_of(work, debug=arguments.debug)


def _shard(config: str, overrides: list[str]) -> None:
    from blsp.recipe import ShardRecipe
    from launcher import data
    from launcher.recipe_files import load_kind

    data.shard(load_kind(ShardRecipe, config, overrides))


if __name__ == "__main__":
    sys.exit(main())
