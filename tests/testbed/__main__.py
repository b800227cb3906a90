"""`python -m tests.testbed` as root: a shell on `login` of a bed of two nodes, until it is left."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.testbed import slurm
from tests.testbed.hosts import environment, hosts_up, why_not


def main() -> int:
    """Returns an exit code."""
    parser = argparse.ArgumentParser(prog="tests.testbed", description="A shell on a bed of hosts (see hosts.py).")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--private-tmp", action="store_true", help="every node has a /tmp of its own")
    parser.add_argument("--slurm", action="store_true", help="with SLURM on them")
    arguments = parser.parse_args()
    if (why := why_not() or (slurm.why_not() if arguments.slurm else None)) is not None:
        print(why, file=sys.stderr)
        return 1
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bed-")))
        bed = stack.enter_context(hosts_up(folder / "hosts", arguments.nodes, private_tmp=arguments.private_tmp))
        more = stack.enter_context(slurm.slurm_up(bed, folder / "slurm")).env if arguments.slurm else {}
        print(f"ssh node1, ssh node2, ...{', sbatch, squeue' if more else ''}; `exit` ends the bed")
        return subprocess.run(bed.login.command(["bash", "-i"], Path.cwd()), env=environment(more)).returncode


if __name__ == "__main__":
    sys.exit(main())
