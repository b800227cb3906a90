"""Shard sets whose files lie in a bucket: read, checked and damaged as on a disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from shards.batches.collate import FILLER_ID
from shards.corpora.build import build_manifest
from shards.pipeline.job import ShardJob, Summary
from shards.prompts import ChatTemplate
from shards.sample import EMOTIONS
from shards.sets import reads
from shards.sets.shard_set import CorruptSample, ShardSet
from shards.sets.store import open_store
from shards.sets.tokens import token_counts
from shards.sets.verify import verify
from tests.shards.batches.test_reader import in_order, read, readers
from tests.shards.s3_server import BUCKET, ROOT, S3Server, failing
from tests.shards.sets.made import edit, make_overlay
from tests.shards.sets.test_object_store import altered


def copied(shard_set: ShardSet, root: str) -> ShardSet:
    """The set in the bucket, file by file."""
    copy_folder(Path(shard_set.url), root)
    return ShardSet.open(root)


def copy_folder(folder: Path, root: str) -> None:
    bucket = open_store(root)
    for path in folder.rglob("*"):
        if path.is_file() and "_tmp" not in path.parts:
            bucket.write(path.relative_to(folder).as_posix(), path.read_bytes())


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_set_in_a_bucket_reads_as_on_disk(
    s3: S3Server, shard_set: ShardSet, template: ChatTemplate, num_workers: int
) -> None:
    remote = copied(shard_set, ROOT)
    assert (remote.dataset_id, remote.rows.tolist()) == (shard_set.dataset_id, shard_set.rows.tolist())
    expected = in_order([read(reader) for reader in readers(shard_set, template, 2)])
    s3.requests.clear()
    ranks = [read(reader) for reader in readers(remote, template, 2, num_workers=num_workers)]
    assert in_order(ranks) == expected
    assert any(path.endswith(".tar") for _, path, _ in s3.requests)


@pytest.mark.parametrize("base", ["beside it", "in the bucket", "on this host"])
def test_an_overlay_in_a_bucket_finds_the_audio_of_its_base(
    s3: S3Server, shard_set: ShardSet, tmp_path: Path, base: str
) -> None:
    overlay = make_overlay(shard_set, tmp_path / "overlay")
    expected = [sample.waveform.tolist() for sample in ShardSet.open(overlay).read_many(range(17))]
    if base != "on this host":
        copied(shard_set, f"s3://{BUCKET}/sets/base")
        path = {"beside it": "../base", "in the bucket": f"s3://{BUCKET}/sets/base"}[base]
        edit(overlay, audio_files=[{"path": f"{path}/{s.tar}", "bytes": s.bytes} for _, s in shard_set.shards])
    copy_folder(overlay, ROOT)
    s3.requests.clear()
    remote = ShardSet.open(ROOT)
    assert [sample.waveform.tolist() for sample in remote.read_many(range(17))] == expected
    assert any("/sets/base/shards/" in path for _, path, _ in s3.requests) is (base != "on this host")
    assert verify(ROOT, pytest.fail).damages == 0


def test_damage_in_a_bucket_is_found(s3: S3Server, shard_set: ShardSet) -> None:
    copied(shard_set, ROOT)
    assert verify(ROOT, pytest.fail).rows_read == 23
    bucket, tar = open_store(ROOT), shard_set.shards[2][1].tar
    garbled = bytearray(bucket.read(tar))
    garbled[700] ^= 1
    bucket.write(tar, bytes(garbled))
    bucket.delete(shard_set.shards[4][1].index)
    damages: list[str] = []
    assert verify(ROOT, damages.append).damaged_shards == 2
    assert [ROOT in damage for damage in damages] == [True] * len(damages)


@pytest.fixture
def long_clips(job: ShardJob, make_shards: Callable[..., Summary], tmp_path: Path) -> ShardSet:
    """24 clips of 4 to 8 s that are as noisy as speech, in four shards."""
    random = np.random.default_rng(3)
    (tmp_path / "long").mkdir()
    lines = []
    for i in range(24):
        noise = 0.05 * random.standard_normal(int(16000 * random.uniform(4, 8)))
        soundfile.write(tmp_path / "long" / f"{i}.wav", noise, 16000)
        lines.append(json.dumps({"audio": f"{i}.wav", "text": f"Sentence number {i}.", "emotion": EMOTIONS[i % 5]}))
    (tmp_path / "long" / "clips.jsonl").write_text("\n".join(lines))
    build_manifest("jsonl", tmp_path / "long" / "clips.jsonl", tmp_path / "long" / "manifest.jsonl", text="raw")
    make_shards(replace(job, manifests=(tmp_path / "long" / "manifest.jsonl",), clips_per_shard=6))
    return ShardSet.open(job.out)


def test_an_epoch_fetches_each_sample_once_whatever_the_number_of_ranks(
    s3: S3Server, long_clips: ShardSet, template: ChatTemplate
) -> None:
    token_counts(long_clips, template)
    copied(long_clips, ROOT)
    s3.reset()
    ids = []
    for rank in range(4):  # as the processes of a job: each opens the set
        reader = readers(ShardSet.open(ROOT), template, 4)[rank]
        ids += [name for step in read(reader, 0, 5) for batch in step for name in batch.ids if name != FILLER_ID]
    assert len(ids) == len(set(ids)) == 24
    samples = [(*what, count) for what, count in s3.requests.items() if what[0] == "GET" and what[1].endswith(".tar")]
    assert len(samples) == 24
    assert {count for *_, count in samples} == {1}
    size_of_set = sum(shard.bytes for _, shard in long_clips.shards)
    assert s3.bytes_sent <= 1.02 * size_of_set


def test_garbled_bytes_are_read_again_and_then_corrupt(s3: S3Server, shard_set: ShardSet) -> None:
    def flip(body: bytes) -> bytes:
        return body[:50] + bytes([body[50] ^ 1]) + body[51:]

    remote = copied(shard_set, ROOT)
    s3.fault = altered(s3, flip, 1)
    s3.requests.clear()
    assert (remote.read(3).waveform == shard_set.read(3).waveform).all()
    assert sum(s3.requests.values()) == 3  # all of it, then the audio and the record
    s3.fault = altered(s3, flip, 1e9)
    with pytest.raises(CorruptSample, match=r"s3://.*tar row 3: the audio fails its checksum"):
        remote.read(3)


def test_an_outage_is_never_a_lost_clip(
    s3: S3Server, shard_set: ShardSet, template: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = copied(shard_set, ROOT)
    (reader,) = readers(remote, template, 1)
    s3.fault = failing("503 Slow Down", 3)
    expected = in_order([read(readers(shard_set, template, 1)[0])])
    assert in_order([read(reader)]) == expected
    monkeypatch.setattr(reads, "RETRY_DEADLINE_S", 0.2)
    s3.fault = failing("503 Slow Down", 1e9)
    with pytest.raises(OSError, match="the store answers 503 SlowDown"):
        read(reader)
