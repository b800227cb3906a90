"""One rank, as people start it, whose disk hangs: `python -m tests.blsp.stuck_disk --config RECIPE`. The second rank's
files of the second checkpoint are never written."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from blsp import snapshot
from launcher import train

if __name__ == "__main__":
    write = snapshot.write_file

    def hang(content: Any, path: Path) -> None:
        while "step-000002" not in str(path) and os.environ["RANK"] == "1":
            time.sleep(1)
        write(content, path)

    snapshot.write_file = hang
    train.end_with(train.main)
