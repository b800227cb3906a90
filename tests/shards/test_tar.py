from __future__ import annotations

import hashlib
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from shards.sample import Utterance
from shards.tar import AudioAt, TarShard, encode_record, sample_key

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
    for row, utterance in zip(ours.index, UTTERANCES, strict=True):
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
