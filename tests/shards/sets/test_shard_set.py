from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from shards.audio import load_audio
from shards.sample import EMOTIONS, Utterance
from shards.sets.shard_set import CorruptSample, ShardSet
from tests.shards.sets.made import edit, flip, make_overlay, tar_of


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


def test_a_flipped_byte_names_shard_and_row_and_nothing_else_suffers(shard_set: ShardSet) -> None:
    entry, tar = shard_set.rows[5], tar_of(shard_set, 5)
    flip(tar, int(entry["audio_offset"]) + 100)
    with pytest.raises(CorruptSample, match=f"{tar} row 1: the audio fails its checksum"):
        shard_set.read(5)
    shard_set.record(5)
    flip(tar, int(entry["json_offset"]) + 3)
    with pytest.raises(CorruptSample, match="record fails its checksum"):
        shard_set.record(5)
    assert all(shard_set.read(row) for row in range(len(shard_set)) if row != 5)


def test_a_copy_in_another_process_reads_the_same(shard_set: ShardSet) -> None:
    shard_set.read(0)
    assert pickle.loads(pickle.dumps(shard_set)).read(0).utterance == shard_set.read(0).utterance  # noqa: S301


def test_an_overlay_reads_its_words_with_the_audio_of_its_base(shard_set: ShardSet, tmp_path: Path) -> None:
    read = ShardSet.open(overlay := make_overlay(shard_set, tmp_path / "overlay"))
    assert (len(read), len(shard_set)) == (17, 23)
    base = {sample.utterance.id: sample for sample in map(shard_set.read, range(23))}
    for sample in map(read.read, range(17)):
        before = base[sample.utterance.id]
        assert sample.utterance == before.utterance
        assert sample.continuation.text == f"Again: {before.continuation.text}"
        assert np.array_equal(sample.waveform, before.waveform)
    assert sum(path.stat().st_size for path in (overlay / "shards").iterdir()) < 6 * 20_480


def test_a_base_beside_its_overlay_is_refused_with_the_reason(shard_set: ShardSet, tmp_path: Path) -> None:
    base, overlay = Path(shard_set.url), make_overlay(shard_set, tmp_path / "overlay")
    with pytest.raises(
        ValueError, match=r"an overlay \(made with `base: SET`\) without its base, whose clips it holds"
    ):
        ShardSet.open(base, overlay)
    edit(base, prompt=None)
    for roots in ((base, overlay), (overlay, base)):
        with pytest.raises(ValueError, match=rf"^{base}: holds no continuations, others of these sets do; an overlay"):
            ShardSet.open(*roots)


def test_the_same_clips_may_be_read_and_replayed_but_neither_twice(shard_set: ShardSet, tmp_path: Path) -> None:
    overlay = make_overlay(shard_set, tmp_path / "overlay")
    edit(overlay, prompt="continue", teacher={"top_k": 4, "temperatures": [1.0]})
    both = ShardSet.open(shard_set.url, replay=[overlay])
    assert both.replayed.tolist() == [False] * 23 + [True] * 17
    assert (both.prompt, both.teacher, both.corpora) == ("continue_emotion", None, shard_set.corpora)
    assert both.read(30).utterance.id in {shard_set.record(row)[0].id for row in range(23)}
    assert not shard_set.replayed.any()
    for roots, replay in (((shard_set.url, shard_set.url), [overlay]), ((shard_set.url,), [overlay, overlay])):
        with pytest.raises(ValueError, match="some utterances are in more than one of these sets"):
            ShardSet.open(*roots, replay=replay)


def test_only_plain_continuations_are_replayed(shard_set: ShardSet, tmp_path: Path) -> None:
    overlay = make_overlay(shard_set, tmp_path / "overlay")
    with pytest.raises(ValueError, match=rf"^{overlay}: its continuations were written under 'continue_emotion'; data"):
        ShardSet.open(shard_set.url, replay=[overlay])
    edit(overlay, prompt="continue")
    with pytest.raises(ValueError, match=r"can be replayed beside others: data\.replay"):
        ShardSet.open(shard_set.url, overlay)


def test_damage_in_the_base_is_damage_of_the_overlay(shard_set: ShardSet, tmp_path: Path) -> None:
    overlay = make_overlay(shard_set, tmp_path / "overlay")
    flip(tar_of(shard_set, 5), int(shard_set.rows["audio_offset"][5]) + 100)
    read = ShardSet.open(overlay)
    (row,) = np.flatnonzero(read.rows["id_hash"] == shard_set.rows["id_hash"][5]).tolist()
    with pytest.raises(CorruptSample, match=f"{tar_of(read, row)} row 0: the audio fails its checksum"):
        read.read(row)
    assert all(read.read(other) for other in range(17) if other != row)
