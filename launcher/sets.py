"""The verbs under `shard` that look after sets which are there already: `verify`."""

from __future__ import annotations

from launcher.errors import on_ctrl_c
from launcher.progress import Progress


def verify(shards: str, fast: bool) -> int:
    """Prints a line per damage, or one line that says what was looked at. Returns the exit code."""
    from shards.audio import SAMPLE_RATE
    from shards.verify import verify

    with on_ctrl_c("stopped; nothing was changed"), Progress() as progress:
        found = verify(
            shards, progress.print, fast=fast, on_progress=lambda done, total: progress.update("shards", done, total)
        )
    if found.damages:
        damages = "1 damage" if found.damages == 1 else f"{found.damages} damages"
        print(f"{shards}: {damages} in {found.damaged_shards} of {found.shards} shards")
        return 1
    looked = f"{found.rows_read} of {found.rows} samples" if fast else f"all {found.rows} samples"
    hours = found.num_samples / SAMPLE_RATE / 3600
    print(f"{shards}: intact; {looked} of {found.shards} shards read, {hours:.2f} h, {found.bytes / 1e6:,.1f} MB")
    return 0
