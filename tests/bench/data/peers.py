"""The same clips through lhotse's Shar and webdataset, as their documentation has it."""

from __future__ import annotations

import importlib.util
import io
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import webdataset
from numpy.typing import NDArray

from shards.audio import encode_flac
from tests.bench.data.clips import Clips

CLIPS_PER_SHARD = 1000  # ours, and their defaults too
HAS_LHOTSE = importlib.util.find_spec("lhotse") is not None


def write_webdataset(clips: Clips, out: Path) -> None:
    """ShardWriter: tars under their final names, no index, no hash, no commit."""
    out.mkdir(parents=True)
    with webdataset.ShardWriter(str(out / "%06d.tar"), maxcount=CLIPS_PER_SHARD, verbose=0) as sink:
        for utterance in clips.utterances:
            samples, _ = soundfile.read(utterance.audio, dtype="int16")
            record = json.dumps(utterance.to_json()).encode()
            sink.write({"__key__": utterance.id, "flac": encode_flac(samples), "json": record})


def webdataset_reader(folder: Path) -> Callable[[], int]:
    """Streams the tars, decodes audio and record; returns the number of clips."""
    tars = sorted(str(path) for path in folder.glob("*.tar"))

    def read() -> int:
        number = 0
        for sample in webdataset.WebDataset(tars, shardshuffle=False, empty_check=False):
            soundfile.read(io.BytesIO(sample["flac"]), dtype="int16")
            json.loads(sample["json"])
            number += 1
        return number

    return read


def _cuts(clips: Clips) -> Any:
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

    cuts = []
    for utterance in clips.utterances:
        recording = Recording.from_file(utterance.audio, recording_id=utterance.id)
        spoken = SupervisionSegment(utterance.id, utterance.id, 0.0, recording.duration, text=utterance.text)
        cuts.append(MonoCut(utterance.id, 0.0, recording.duration, 0, [spoken], recording=recording))
    return CutSet.from_cuts(cuts)


def shar_writer(clips: Clips) -> Callable[[Path], None]:
    """SharWriter: FLAC in a tar, cuts in a compressed JSONL file; no hash, no commit."""
    from lhotse.shar import SharWriter

    cuts = _cuts(clips)  # its manifests, as ours, are there before the clock runs

    def write(out: Path) -> None:
        out.mkdir(parents=True)
        with SharWriter(str(out), fields={"recording": "flac"}, shard_size=CLIPS_PER_SHARD) as sink:
            for cut in cuts:
                sink.write(cut)

    return write


def shar_reader(folder: Path) -> Callable[[], int]:
    """Streams the cuts and decodes their audio; returns the number of clips."""
    from lhotse import CutSet

    def read() -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return sum(cut.load_audio().size > 0 for cut in CutSet.from_shar(in_dir=folder))

    return read


def bucketed(seconds: NDArray[np.float64], ranks: int, max_duration_s: float) -> Iterator[list[NDArray[np.int64]]]:
    """What DynamicBucketingSampler deals to all ranks at a time: row numbers, one batch per rank."""
    from lhotse.dataset.sampling import DynamicBucketingSampler

    class AllRanks(DynamicBucketingSampler):  # type: ignore[misc]
        """A rank draws the batches of all, and keeps its own; here the others' are kept too."""

        def _next_batch(self) -> Any:
            batch = super()._next_batch()
            drawn.append(np.array([int(cut.id.split("-")[0]) for cut in batch]))
            return batch

    drawn: list[NDArray[np.int64]] = []
    order = np.random.default_rng(0).permutation(len(seconds))
    cuts = _Cuts(seconds, order)
    sampler = AllRanks(
        cuts, max_duration=max_duration_s, num_buckets=30, shuffle=True, drop_last=True, world_size=ranks, rank=0
    )
    for _ in sampler:
        yield drawn[-ranks:]


def bucketing(seconds: NDArray[np.float64], max_duration_s: float) -> Any:
    """One rank's DynamicBucketingSampler."""
    from lhotse.dataset.sampling import DynamicBucketingSampler

    cuts = _Cuts(seconds, np.arange(len(seconds)))
    return DynamicBucketingSampler(cuts, max_duration=max_duration_s, num_buckets=30, shuffle=True)


class _Cuts:
    """Cuts of which only the duration matters, made as they are asked for."""

    def __init__(self, seconds: NDArray[np.float64], order: NDArray[np.int64]) -> None:
        self._seconds, self._order = seconds, order

    def __iter__(self) -> Iterator[Any]:
        from lhotse import MonoCut

        for row in self._order:
            yield MonoCut(str(row), 0.0, float(self._seconds[row]), 0)
