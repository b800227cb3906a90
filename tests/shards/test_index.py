from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from shards.audio import load_audio
from shards.pipeline import ShardJob, Summary
from shards.prompts import ChatTemplate
from shards.sample import EMOTIONS, Utterance
from shards.shard_set import CorruptSample, ShardSet
from shards.tokens import token_counts


def test_every_sample_is_what_went_in(shard_set: ShardSet, corpus: Path) -> None:
    samples = {sample.utterance.id: sample for sample in map(shard_set.read, range(len(shard_set)))}
    assert len(samples) == len(shard_set) == 23
    for line in corpus.read_text().splitlines():
        utterance = Utterance.from_json(json.loads(line))
        sample = samples[utterance.id]
        assert sample.utterance == utterance  # its audio path still relative: no path of this machine in a shard
        assert sample.continuation.text == f"and {utterance.emotion} {utterance.text}"
        assert np.array_equal(sample.waveform, load_audio(corpus.parent / utterance.audio))


def test_the_index_says_what_the_samples_hold(shard_set: ShardSet) -> None:
    for row in range(len(shard_set)):
        sample = shard_set.read(row)
        assert shard_set.record(row) == (sample.utterance, sample.continuation)
        assert shard_set.rows[row]["num_samples"] == len(sample.waveform)
        assert sample.utterance.emotion == EMOTIONS[shard_set.rows[row]["emotion"]]


def test_stock_webdataset_and_tarfile_read_the_same_bytes(shard_set: ShardSet) -> None:
    import webdataset

    tars = sorted((Path(shard_set.url) / "shards").glob("*.tar"))
    by_key = {}
    for item in webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False):
        by_key[json.loads(item["json"])["id"]] = (item["__key__"], item["flac"])
    for row in range(len(shard_set)):
        sample = shard_set.read(row)
        key, flac = by_key.pop(sample.utterance.id)
        assert np.array_equal(soundfile.read(io.BytesIO(flac), dtype="int16")[0], sample.waveform)
        with tarfile.open(tars[shard_set.rows[row]["shard"]]) as tar:
            member = tar.getmember(f"{key}.flac")
            assert (member.offset_data, member.size, member.mtime) == (
                shard_set.rows[row]["audio_offset"],
                len(flac),
                0,
            )
    assert not by_key


def test_a_flipped_byte_names_shard_and_row_and_nothing_else_suffers(shard_set: ShardSet) -> None:
    entry = shard_set.rows[5]
    tar = sorted((Path(shard_set.url) / "shards").glob("*.tar"))[entry["shard"]]
    data = bytearray(tar.read_bytes())
    data[int(entry["audio_offset"]) + 100] ^= 1
    tar.write_bytes(data)
    with pytest.raises(CorruptSample, match=f"{tar} row 1: the audio fails its checksum"):
        shard_set.read(5)
    shard_set.record(5)
    data[int(entry["json_offset"]) + 3] ^= 1
    tar.write_bytes(data)
    with pytest.raises(CorruptSample, match="record fails its checksum"):
        shard_set.record(5)
    assert all(shard_set.read(row) for row in range(len(shard_set)) if row != 5)


def test_damage_that_opening_can_see_is_refused(shard_set: ShardSet) -> None:
    path = Path(shard_set.url)
    tar, index = (sorted((path / folder).iterdir())[0] for folder in ("shards", "index"))
    index_bytes = index.read_bytes()
    for damaged in (index_bytes[:50], index_bytes[:-1], b""):
        index.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{index}: damaged"):
            ShardSet.open(path)
    index.write_bytes(index_bytes)
    with tar.open("ab") as file:
        file.write(b"0")
    with pytest.raises(ValueError, match="bytes, written were"):
        ShardSet.open(path)
    tar.unlink()
    with pytest.raises(ValueError, match="is missing"):
        ShardSet.open(path)
    (path / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset\.json: damaged"):
        ShardSet.open(path)


def test_an_index_never_runs_pickled_code(shard_set: ShardSet) -> None:
    index = sorted((Path(shard_set.url) / "index").iterdir())[0]
    np.save(index, np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="damaged"):
        ShardSet.open(shard_set.url)


def test_a_folder_that_is_no_shard_set_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="make one with `blsp shard RECIPE`"):
        ShardSet.open(tmp_path)
    (tmp_path / "job.json").write_text("{}")
    with pytest.raises(ValueError, match="unfinished; run the same `blsp shard` again"):
        ShardSet.open(tmp_path)


def test_a_copy_in_another_process_reads_the_same(shard_set: ShardSet) -> None:
    shard_set.read(0)
    assert pickle.loads(pickle.dumps(shard_set)).read(0).utterance == shard_set.read(0).utterance  # noqa: S301


def test_tokens_are_counted_once_per_tokenizer(shard_set: ShardSet, template: ChatTemplate) -> None:
    counts = token_counts(shard_set, template)
    for row in (0, 7, 22):
        utterance, continuation = shard_set.record(row)
        response = template.response(continuation.text, continuation.finished)
        assert counts[row].tolist() == (len(template.encode(utterance.text)), len(response))
    (kept, *others) = sorted((Path(shard_set.url) / "tokens" / template.fingerprint).iterdir())
    assert len(others) == 5
    first = counts[:4]
    assert np.array_equal(np.load(kept), first)
    np.save(kept, np.roll(first, 1))
    assert np.array_equal(token_counts(shard_set, template)[:4], np.roll(first, 1))
    kept.write_bytes(b"damaged")
    assert np.array_equal(token_counts(shard_set, template), counts)


def test_the_same_work_gives_the_same_bytes(job: ShardJob, make_shards: Callable[..., Summary], tmp_path: Path) -> None:
    from dataclasses import replace

    first, second = (make_shards(replace(job, out=tmp_path / name)) for name in ("one", "two"))
    assert first == second
    for folder in ("shards", "index", "commits"):
        files = [sorted((tmp_path / name / folder).iterdir()) for name in ("one", "two")]
        assert [p.name for p in files[0]] == [p.name for p in files[1]]
        assert [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]
