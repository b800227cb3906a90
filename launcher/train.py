"""What DeepSpeed starts on every rank: `deepspeed --hostfile hostfile --module launcher.train --config RECIPE`."""

from __future__ import annotations

import argparse
import os
import sys

from launcher.errors import exit_code_of
from launcher.progress import Progress
from launcher.quiet import silence_libraries


def main() -> int:
    """Parses the command line and trains. Returns the exit code of this rank."""
    parser = argparse.ArgumentParser(prog="launcher.train", description="One rank of a training run.")
    parser.add_argument("--config", required=True, help="a recipe file or the name of a shipped recipe")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="replace values of the recipe")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("--local_rank", type=int, help="passed by DeepSpeed; the environment says it too")
    arguments = parser.parse_intermixed_args()
    name = f"rank {os.environ.get('RANK', '0')}"
    return exit_code_of(lambda: _train(arguments.config, arguments.overrides), debug=arguments.debug, name=name)


def _train(config: str, overrides: list[str]) -> None:
    from blsp.recipe import TrainRecipe
    from cluster.ports import refuse_taken_port
    from launcher.recipe_files import load_kind

    recipe = load_kind(TrainRecipe, config, overrides)
    if os.environ.get("RANK") == "0" and "MASTER_PORT" in os.environ:
        refuse_taken_port(int(os.environ["MASTER_PORT"]))
    silence_libraries()
    from blsp.engine import train

    with Progress() as progress:
        train(recipe, lambda done, total, note: progress.update(f"{recipe.run}: steps", done, total, note))


if __name__ == "__main__":
    sys.exit(main())
