"""What the model heard in a step: its clips as FLAC, and what each of them cost."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from blsp.losses import COLUMNS
from blsp.recipe import StageSection
from blsp.scalars import means
from shards.audio import SAMPLE_RATE, encode_flac
from shards.batches.collate import FILLER_ID, Batch

MicroBatch = tuple[int, Batch, Tensor]  # its number in the step, and the table of its losses


def write_clips(
    out: Path, stage: StageSection, micro_batches: Iterable[MicroBatch], most_files: int | None = None
) -> list[dict[str, Any]]:
    """Write the clips into `out`, and return id, corpus, micro_batch, files and losses of each, the dearest first; a
    loss that is not finite is dearer than any, and None. The audio of the `most_files` dearest at most."""
    out.mkdir(parents=True, exist_ok=True)
    found: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for number, batch, table in micro_batches:
        waveforms, last = batch.waveform.split(batch.num_samples.tolist()), batch.last_clip.tolist()
        for place, (name, row) in enumerate(zip(batch.ids, table.cpu(), strict=True)):
            if name == FILLER_ID:
                continue
            stem = f"{number:03d}-{place:02d}-{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[-80:]}"
            turns = waveforms[last[place - 1] + 1 if place else 0 : last[place] + 1]
            names = [*(f"{stem}-turn{turn}.flac" for turn in range(len(turns) - 1)), f"{stem}.flac"]
            sums = dict(zip(COLUMNS, row.nan_to_num(0, 0, 0).tolist(), strict=True))
            losses = means(stage, row)
            clip = {
                "id": name, "corpus": batch.corpora[place], "micro_batch": number, "files": names,
                "seconds": sum(map(len, turns)) / SAMPLE_RATE, "num_tokens": int(sums["num_rows"]),
                **{key: value if math.isfinite(value) else None for key, value in losses.items()},
            }  # fmt: skip
            found.append((clip, dict(zip(names, turns, strict=True))))
    found.sort(key=lambda each: -math.inf if each[0]["loss"] is None else -each[0]["loss"])
    for place, (clip, files) in enumerate(found):
        if most_files is not None and place >= most_files:
            clip["files"] = []
            continue
        for file, waveform in files.items():
            (out / file).write_bytes(encode_flac(waveform.numpy()))
    return [clip for clip, _ in found]
