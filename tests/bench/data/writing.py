"""How much of a bare FLAC encoder's speed is left when clips are written to a shard set."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import soundfile

from shards.audio import encode_flac
from shards.decoder import Decoder
from shards.inputs import FromManifests, clip_reader
from shards.store import open_store
from shards.tasks import answer, write_task
from tests.bench.data import peers
from tests.bench.data.clips import Clips
from tests.bench.data.figure import Figure
from tests.bench.data.ours import CLIPS_PER_SHARD, PROMPT, Echo
from tests.bench.data.timing import interleaved, share


def measure(clips: Clips, scratch: Path, rounds: int) -> list[Figure]:
    """Each writes all clips: the bare encoder from memory, the others from WAV files to a disk."""
    folders = (scratch / f"written-{number}" for number in itertools.count())
    tasks = FromManifests([clips.manifest], CLIPS_PER_SHARD).tasks
    read_clips = clip_reader([clips.manifest], None)

    def bare() -> None:
        for waveform in clips.waveforms:
            encode_flac(waveform)

    def from_files() -> None:
        for utterance in clips.utterances:
            encode_flac(soundfile.read(utterance.audio, dtype="int16")[0])

    def ours() -> None:
        store = open_store(next(folders))
        with Decoder() as decoder:  # as each CPU actor has one
            for task in tasks:
                found = read_clips(task)
                write_task(store, task, found, PROMPT, answer(Echo(), found, PROMPT), decoder.encode)

    operations: dict[str, Callable[[], object]] = {
        "bare": bare,
        "from files": from_files,
        "ours": ours,
        "webdataset ShardWriter": lambda: peers.write_webdataset(clips, next(folders), CLIPS_PER_SHARD),
    }
    if peers.HAS_LHOTSE:
        write_shar = peers.shar_writer(clips, CLIPS_PER_SHARD)
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
            name="the same in CPU seconds of threads and processes", ours=share(taken["bare"], taken["ours"], "cpu"),
            peers={name: share(taken["bare"], taken[name], "cpu") for name in names},
        ),
    ]  # fmt: skip
