"""`python -m tests.testbed` as root: a shell on `login` of a bed of two nodes, until it is left."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.testbed.hosts import environment, hosts_up, why_not


def main() -> int:
    """Returns an exit code."""
    parser = argparse.ArgumentParser(prog="tests.testbed", description="A shell on a bed of hosts (see hosts.py).")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--private-tmp", action="store_true", help="every node has a /tmp of its own")
    arguments = parser.parse_args()
    if (why := why_not()) is not None:
        print(why, file=sys.stderr)
        return 1
    with (
        tempfile.TemporaryDirectory(prefix="bed-") as folder,
        hosts_up(Path(folder), arguments.nodes, private_tmp=arguments.private_tmp) as bed,
    ):
        print("ssh node1, ssh node2, ...; `exit` ends the bed")
        return subprocess.run(bed.login.command(["bash", "-i"], Path.cwd()), env=environment()).returncode


if __name__ == "__main__":
    sys.exit(main())
