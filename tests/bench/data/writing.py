"""How much of a bare FLAC encoder's speed is left when clips are written to a shard set."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import soundfile

from shards.audio import encode_flac
from shards.decoder import Decoder
from shards.pipeline.answers import answer
from shards.pipeline.tasks import write_task
from shards.sets.store import open_store
from tests.bench.data import peers
from tests.bench.data.clips import Clips
from tests.bench.data.figure import Figure
from tests.bench.data.ours import PROMPT, Echo, job_of
from tests.bench.data.timing import interleaved, share


def measure(clips: Clips, scratch: Path, rounds: int) -> list[Figure]:
    """Each writes all clips: the bare encoder from memory to memory, the others from WAV files to a disk."""
    folders = (scratch / f"written-{number}" for number in itertools.count())
    job = job_of(clips, scratch)
    tasks, read_clips = job.inputs().tasks, job.clip_reader()
    answers = [answer(Echo(), read_clips(task), PROMPT) for task in tasks]

    def bare() -> None:
        for waveform in clips.waveforms:
            encode_flac(waveform)

    def from_files() -> None:
        for utterance in clips.utterances:
            encode_flac(soundfile.read(utterance.audio, dtype="int16")[0])

    with Decoder() as decoder:  # as in an actor: one for all of its tasks

        def ours() -> None:
            store = open_store(next(folders))
            for task, answered in zip(tasks, answers, strict=True):
                write_task(store, task, read_clips(task), PROMPT, answered, decoder.encode)

        operations: dict[str, Callable[[], object]] = {
            "bare": bare,
            "no shard at all, but from files": from_files,
            "ours": ours,
            "webdataset ShardWriter": lambda: peers.write_webdataset(clips, next(folders)),
        }
        if peers.HAS_LHOTSE:
            write_shar = peers.shar_writer(clips)
            operations["lhotse Shar"] = lambda: write_shar(next(folders))
        taken = interleaved(operations, rounds)
    names = [name for name in operations if name not in ("bare", "ours")]
    return [
        Figure(
            name="writer incl. hash, index, commit / FLAC encode alone", target=0.8, at_least=True,
            ours=share(taken["bare"], taken["ours"]),
            peers={name: share(taken["bare"], taken[name]) for name in names},
        ),
        Figure(
            name="the same in CPU seconds of all processes", ours=share(taken["bare"], taken["ours"], "cpu"),
            peers={name: share(taken["bare"], taken[name], "cpu") for name in names},
        ),
    ]  # fmt: skip
