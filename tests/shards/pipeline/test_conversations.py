"""Conversations from a manifest to a shard set, and what is done with sets."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from shards.pipeline.job import ShardJob, Summary
from shards.pipeline.run import write_shards
from shards.prompts import ChatTemplate
from shards.sets.index import EARLIER_CLIP, INDEX_ROW, Index, dataset_id, encode_array
from shards.sets.remove import Selection, remove
from shards.sets.shard_set import CorruptSample, Sample, ShardSet
from shards.sets.tokens import token_counts
from shards.sets.verify import verify
from tests.shards.dialogues import FORMS, make_dialogues
from tests.shards.sets.made import edit, flip, make_overlay

NUM = 12
Clips = list[list[NDArray[np.int16]]]


@pytest.fixture
def dialogues(tmp_path: Path) -> tuple[Path, Clips]:
    return make_dialogues(tmp_path / "dialogues", NUM)


@pytest.fixture
def talks(dialogues: tuple[Path, Clips], job: ShardJob, make_shards: Callable[..., Summary]) -> ShardSet:
    """Three shards of four conversations."""
    made = replace(job, manifests=(dialogues[0],), prompt="reply_emotion", out=Path(job.out).with_name("talks"))
    make_shards(made)
    return ShardSet.open(made.out)


def damages(root: str | Path) -> list[str]:
    found: list[str] = []
    verify(root, found.append)
    return found


def number(sample: Sample) -> int:
    return int(sample.utterance.id.removeprefix("dialogue-"))


def check_clips(shard_set: ShardSet, clips: Clips) -> None:
    lengths, rows = shard_set.clips
    for row in range(len(shard_set)):
        sample = shard_set.read(row)
        expected = clips[number(sample)]
        assert [clip.tolist() for clip in sample.clips] == [clip.tolist() for clip in expected]
        assert lengths[rows == row].tolist() == [len(clip) for clip in expected]
        assert shard_set.rows["num_samples"][row] == sum(map(len, expected))


def test_every_turn_that_is_heard_comes_back_as_it_was(talks: ShardSet, dialogues: tuple[Path, Clips]) -> None:
    check_clips(talks, dialogues[1])
    assert damages(talks.url) == []
    for row in range(NUM):
        utterance, continuation = talks.record(row)
        assert len(utterance.messages) == 2 * len(FORMS[int(utterance.id[-2:]) % len(FORMS)])
        assert continuation is not None and continuation.prompt == "reply_emotion"
        assert all(path.startswith("wav/") for path, *_ in utterance.spans)


def test_a_tar_of_conversations_is_plain_webdataset(talks: ShardSet) -> None:
    store, shard = talks.shards[0]
    with tarfile.open(Path(store.url) / shard.tar) as tar:
        members = tar.getmembers()
        assert [Path(member.name).suffix for member in members] == [".flac", ".json"] * shard.rows
        for audio, record in zip(members[::2], members[1::2], strict=True):
            samples, rate = soundfile.read(io.BytesIO(tar.extractfile(audio).read()))  # type: ignore[union-attr]
            said = json.load(tar.extractfile(record))  # type: ignore[arg-type]
            earlier = sum(message.get("num_samples", 0) for message in said.get("messages", []))
            assert rate == 16000 and earlier < len(samples)


def test_an_index_without_conversations_is_what_it_was(shard_set: ShardSet, talks: ShardSet) -> None:
    store, shard = shard_set.shards[0]
    assert len(store.read(shard.index)) == len(encode_array(np.empty(shard.rows, INDEX_ROW)))
    lengths, rows = shard_set.clips
    assert np.array_equal(lengths, shard_set.rows["num_samples"]) and np.array_equal(rows, np.arange(len(shard_set)))
    assert len(talks.clips[0]) == sum(1 + FORMS[i % len(FORMS)].count("s") for i in range(NUM))


def test_a_conversation_without_one_of_its_turns_is_rejected_with_that_turns_reason(
    dialogues: tuple[Path, Clips], job: ShardJob, make_shards: Callable[..., Summary]
) -> None:
    folder = dialogues[0].parent / "wav"
    (folder / "1-0.wav").unlink()
    soundfile.write(folder / "3-2.wav", np.zeros(16000, np.int16), 16000)
    summary = make_shards(replace(job, manifests=(dialogues[0],)))
    assert summary.rejected == {"missing_audio": 1, "silent": 1}
    talks = ShardSet.open(job.out)
    assert len(talks) == NUM - 2
    check_clips(talks, dialogues[1])


def test_an_overlay_and_a_set_without_a_speaker_keep_every_turn(
    talks: ShardSet, dialogues: tuple[Path, Clips], tmp_path: Path
) -> None:
    overlay = make_overlay(talks, tmp_path / "overlay")
    assert damages(overlay) == []
    check_clips(ShardSet.open(overlay), dialogues[1])
    for source, out in ((talks.url, "without"), (str(overlay), "without-too")):
        assert remove(source, tmp_path / out, Selection(speaker="spk1")).removed
        kept = ShardSet.open(tmp_path / out)
        assert {number(kept.read(row)) % 2 for row in range(len(kept))} == {0}
        check_clips(kept, dialogues[1])


def test_an_index_that_is_not_of_its_records_is_found(talks: ShardSet) -> None:
    (row,) = [row for row in range(4) if len(talks.record(row)[0].spans) > 1][:1]
    talks._earlier["num_samples"][0] += 1
    (sample,) = talks.read_many([row])
    assert isinstance(sample, CorruptSample) and "do not agree on the clips of messages" in str(sample)
    store, shard = talks.shards[0]
    path = Path(store.url) / shard.index
    whole = path.read_bytes()
    flip(path, len(whole) - 3)
    with pytest.raises(ValueError, match="damaged"):
        ShardSet.open(store.url)
    assert any("fails its checksum" in damage for damage in damages(store.url))


def resign(shard_set: ShardSet, number: int, earlier: list[tuple[int, int]]) -> None:
    """Other clips of conversations in the index of a shard, all else as if that had been written."""
    store, shard = shard_set.shards[number]
    rows = shard_set.rows[shard_set.rows["shard"] == number][list(INDEX_ROW.names or ())].astype(INDEX_ROW)
    data = Index(rows, np.array(earlier, EARLIER_CLIP)).encode()
    (Path(store.url) / shard.index).write_bytes(data)
    shards = [replace(s, index_crc32=zlib.crc32(data)) if s == shard else s for _, s in shard_set.shards]
    edit(Path(store.url), shards=[asdict(s) for s in shards], dataset_id=dataset_id(shards))


def test_verify_compares_the_clips_of_index_and_record(talks: ShardSet) -> None:
    clips = [(row, length) for row in range(4) for length in talks.record(row)[0].earlier_samples]
    resign(talks, 0, clips)
    assert damages(talks.url) == []
    (row, length), *others = clips
    resign(talks, 0, [(row, length + 1), *others])
    assert [line.partition(f"row {row}: ")[2] for line in damages(talks.url)] == [
        "record and index do not agree on the clips of messages"
    ]


def test_the_encoders_30_s_hold_for_a_clip_and_not_for_a_conversation(
    job: ShardJob, make_shards: Callable[..., Summary], tmp_path: Path
) -> None:
    tone = (8000 * np.sin(np.arange(31 * 16000) / 20)).astype(np.int16)
    lines = []
    for name, seconds in (("long", 20), ("longer", 31)):
        soundfile.write(tmp_path / f"{name}.wav", tone[: seconds * 16000], 16000)
        heard = {"role": "user", "text": "So it goes.", "audio": f"{name}.wav"}
        talk = {"id": name, "audio": "long.wav", "text": "And so on.", "corpus": "c", "emotion": "sad"}
        lines.append(json.dumps({**talk, "messages": [heard, {"role": "assistant", "text": "Yes."}]}))
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    assert make_shards(replace(job, manifests=(tmp_path / "m.jsonl",))).rejected == {"too_long": 1}
    assert [len(clip) for clip in ShardSet.open(job.out).read(0).clips] == [320000, 320000]


def test_no_index_may_say_what_no_conversation_is(talks: ShardSet) -> None:
    too_many, too_long = [(3, 5)] * 17, [(0, 2**31)] * 2
    for earlier in ([(0, 0)], [(1, 10), (0, 10)], [(4, 10)], [(2, 2**31)], too_many, too_long):
        resign(talks, 0, earlier)
        with pytest.raises(ValueError, match=r"earlier clips cannot be|not in the order of its rows"):
            ShardSet.open(talks.url)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_ray_and_a_chat_llm_make_the_same_of_conversations(
    dialogues: tuple[Path, Clips], llm_folder: Path, template: ChatTemplate, tmp_path: Path
) -> None:
    """The writer reads the words of all turns, counts are left beside the index, and an overlay finds the audio."""
    job = ShardJob(
        out=tmp_path / "talks", manifests=(dialogues[0],), llm=str(llm_folder), prompt="reply", max_new_tokens=8,
        clips_per_shard=4, cpu_actors=1,
    )  # fmt: skip
    write_shards(job, lambda progress: None)
    talks = ShardSet.open(job.out)
    check_clips(talks, dialogues[1])
    assert damages(job.out) == []
    left = Path(job.out) / "tokens" / template.fingerprint
    assert len(list(left.iterdir())) == 3
    counts = token_counts(talks, template)
    for path in left.iterdir():
        path.unlink()
    assert np.array_equal(token_counts(ShardSet.open(job.out), template), counts)
    write_shards(
        replace(job, manifests=(), base=job.out, out=tmp_path / "again", prompt="reply_emotion"), lambda p: None
    )
    check_clips(ShardSet.open(tmp_path / "again"), dialogues[1])
    assert damages(tmp_path / "again") == []
