from __future__ import annotations

import hashlib
import io
import json
import re
import resource
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from shards.pipeline.job import ShardJob, Summary
from shards.sample import Utterance
from shards.sets.shard_set import ShardSet
from shards.sets.tar import AudioAt, TarShard, encode_record, sample_key

UTTERANCES = [Utterance(id=f"wäv/{i}", audio=f"{i}.wav", text="schön", corpus="c") for i in range(25)]


@given(st.lists(st.text(min_size=1), min_size=2, max_size=6, unique=True))
def test_keys_are_plain_and_unique(ids: list[str]) -> None:
    keys = [sample_key(utterance_id) for utterance_id in ids]
    assert len(set(keys)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,80}", key) for key in keys)


def test_a_key_can_be_recognised() -> None:
    assert sample_key("wav/03a01Fa").startswith("wav_03a01Fa-")


def test_the_tar_is_what_webdataset_itself_writes(tmp_path: Path) -> None:
    with (
        TarShard(tmp_path / "ours.tar") as ours,
        webdataset.TarWriter(str(tmp_path / "theirs.tar"), encoder=False, mtime=0, user="", group="") as theirs,
    ):
        for i, utterance in enumerate(UTTERANCES):
            record, flac = encode_record(utterance, None), bytes(300 * i)  # whole blocks and broken ones, and nothing
            apart = i % 5 == 3
            ours.add(utterance, None, AudioAt(0, 0, 9, 9) if apart else flac, 16000)
            theirs.write({"__key__": sample_key(utterance.id), "json": record, **({} if apart else {"flac": flac})})
    written = (tmp_path / "ours.tar").read_bytes()
    assert written == (tmp_path / "theirs.tar").read_bytes()
    assert ours.digest == hashlib.blake2b(written, digest_size=6).hexdigest()
    for row, utterance in zip(ours.index.rows, UTTERANCES, strict=True):
        assert written[row["json_offset"] :][: row["json_size"]] == encode_record(utterance, None)


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow past 64 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("number", [1, 40])
@pytest.mark.usefixtures("small_files")
def test_what_the_disk_does_not_take_is_an_error_of_the_shard(number: int, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File too large"), TarShard(tmp_path / "a.tar") as shard:
        for utterance in number * UTTERANCES[:1]:
            shard.add(utterance, None, bytes(100_000), 16000)


def test_stock_webdataset_and_tarfile_read_the_same_bytes(shard_set: ShardSet) -> None:
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


def test_the_same_work_gives_the_same_bytes(job: ShardJob, make_shards: Callable[..., Summary], tmp_path: Path) -> None:
    first, second = (make_shards(replace(job, out=tmp_path / name)) for name in ("one", "two"))
    assert first == second
    for folder in ("shards", "index", "commits"):
        files = [sorted((tmp_path / name / folder).iterdir()) for name in ("one", "two")]
        assert [p.name for p in files[0]] == [p.name for p in files[1]]
        assert [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]
