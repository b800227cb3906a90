"""Every kind of damage is one line that names the file and the row, and hides no other."""

from __future__ import annotations

import dataclasses
import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest

from shards.audio import encode_flac
from shards.prompts import ChatTemplate
from shards.sample import Continuation, Utterance
from shards.sets.index import Shard, dataset_id, encode_array
from shards.sets.new_set import NewSet
from shards.sets.shard_set import ShardSet
from shards.sets.tar import TarShard
from shards.sets.tokens import token_counts
from shards.sets.verify import verify
from tests.shards.sets.made import edit, flip, make_overlay, tar_of


def damages(root: str | Path, fast: bool = False) -> list[str]:
    lines: list[str] = []
    found = verify(root, lines.append, fast=fast)
    assert found.damages == len(lines)
    return lines


def test_a_set_that_is_as_it_was_written_is_intact(shard_set: ShardSet, template: ChatTemplate) -> None:
    token_counts(shard_set, template)
    lines: list[str] = []
    progress: list[tuple[int, int]] = []
    found = verify(shard_set.url, lines.append, on_progress=lambda *state: progress.append(state))
    assert not lines
    assert (found.shards, found.rows, found.rows_read, found.damages) == (6, 23, 23, 0)
    assert found.num_samples == shard_set.rows["num_samples"].sum()
    assert found.bytes == sum(path.stat().st_size for path in (Path(shard_set.url) / "shards").iterdir())
    assert progress == [(i, 6) for i in range(1, 7)]
    fast = verify(shard_set.url, lines.append, fast=True)
    assert (fast.damages, fast.rows, fast.rows_read) == (0, 23, 18)


def test_no_byte_of_a_tar_can_change_unseen(shard_set: ShardSet) -> None:
    """One flipped bit anywhere is one line, in headers and padding too."""
    tar = tar_of(shard_set, 0)
    size, intact = tar.stat().st_size, tar.read_bytes()
    entry = shard_set.rows[1]
    audio, record = (
        slice(int(entry[f"{p}_offset"]), int(entry[f"{p}_offset"] + entry[f"{p}_size"])) for p in ("audio", "json")
    )
    places = [audio.start, audio.stop - 1, record.start, record.stop - 1]
    random = np.random.default_rng(0).integers(0, size, 25).tolist()
    for place in [*places, 0, 156, 511, audio.stop, record.start - 1, record.stop, size - 1, *random]:
        flip(tar, place)
        (line,) = damages(shard_set.url)
        assert line.startswith(str(tar)), place
        if place in places:
            what = "audio" if place < record.start - 512 else "record"
            assert line == f"{tar} row 1: the {what} fails its checksum"
        tar.write_bytes(intact)


def test_damage_in_one_shard_hides_none_in_another(shard_set: ShardSet, template: ChatTemplate) -> None:
    token_counts(shard_set, template)
    root, tars = Path(shard_set.url), [tar_of(shard_set, row) for row in range(0, 23, 4)]
    indexes = [root / "index" / f"{tar.stem}.npy" for tar in tars]
    tokens = root / "tokens" / template.fingerprint / f"{tars[0].stem}.npy"
    tars[0].unlink()
    os.truncate(tars[1], int(shard_set.rows["json_offset"][6]))
    flip(indexes[2], 300)
    indexes[3].unlink()
    flip(tars[3], 1000)
    flip(tars[4], int(shard_set.rows["audio_offset"][17]) + 50)
    flip(tars[4], int(shard_set.rows["json_offset"][18]))
    tokens.write_bytes(tokens.read_bytes()[:-1])
    found = damages(root)
    again = "copy the shard set again, or make it again"
    size = tars[1].stat().st_size
    assert found == [
        f"{tokens}: damaged (63 bytes for 4 rows of 16); delete it, it is made again when it is needed",
        f"{tars[0]}: is missing; {again}",
        f"{tars[1]}: {size} bytes, written were {shard_set.shards[1][1].bytes}; lost with it are rows 2 to 3",
        f"{indexes[2]}: damaged (it fails its checksum); {again}",
        f"{indexes[3]}: is missing; {again}",
        f"{tars[3]}: its bytes are not those whose hash is in its name",
        f"{tars[4]} row 1: the audio fails its checksum",
        f"{tars[4]} row 2: the record fails its checksum",
    ]
    fast = damages(root, fast=True)
    assert [line for line in found[:5] if line not in fast] == []


def test_a_disk_that_cannot_be_read_is_damage_of_one_shard(
    shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shards.sets import store

    real = store.FolderStore._pread

    def broken(self: store.FolderStore, name: str, offset: int, size: int) -> bytes:
        if name == shard_set.shards[2][1].tar:
            raise OSError(5, "Input/output error")
        return real(self, name, offset, size)

    monkeypatch.setattr(store.FolderStore, "_pread", broken)
    monkeypatch.setattr(store.time, "monotonic", iter(range(0, 10**6, 100)).__next__)
    assert damages(shard_set.url) == [f"{tar_of(shard_set, 8)}: cannot be read (Input/output error)"]


def test_what_dataset_json_says_of_itself_is_checked(shard_set: ShardSet) -> None:
    root = Path(shard_set.url)
    edit(root, dataset_id="0" * 16, written=22)
    assert damages(root) == [
        f"{root}/dataset.json: its dataset_id is not that of the shards it names",
        f"{root}/dataset.json: says that 22 clips were written, its shards have 23 rows",
    ]
    (root / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset\.json: damaged"):
        damages(root)


def test_an_overlay_is_checked_with_the_audio_of_its_base(shard_set: ShardSet, tmp_path: Path) -> None:
    overlay = make_overlay(shard_set, tmp_path / "overlay")
    assert damages(overlay) == []
    tars = [tar_of(shard_set, row) for row in range(0, 23, 4)]
    flip(tars[1], int(shard_set.rows["audio_offset"][6]) + 60)
    with tars[2].open("ab") as file:
        file.write(b"more")
    tars[3].unlink()
    first, second, *others = damages(overlay)
    ours = sorted((overlay / "shards").iterdir())
    size = shard_set.shards[2][1].bytes
    assert first == f"{tars[2]}: {size + 4} bytes, not {size} as when this set was made; its audio is read from there"
    assert second == f"{tars[3]}: is missing; audio of this set is read from there"
    assert others == [f"{ours[1]} row 1: the audio (in {tars[1]}) fails its checksum"]


def _one_row(root: Path, **changes: object) -> list[str]:
    """The damages of a set with one row, of which something is not as it should be."""
    utterance = Utterance(id="a", audio="a.wav", text="t", corpus=str(changes.get("corpus", "c")), emotion="sad")
    continuation = Continuation(prompt=str(changes.get("prompt", "continue")), text="r", finished=True, writer="w")
    samples = np.arange(4000, dtype=np.int16)
    audio = changes.get("audio", encode_flac(samples))
    with NewSet.begin(root, {}) as new:
        shard = new.write_shard(
            0,
            lambda tar: tar.add(utterance, continuation, audio, int(str(changes.get("num_samples", 4000)))),  # type: ignore[arg-type]
        )
        assert shard is not None
        new.finish([shard], [], 0, {"prompt": "continue", "corpora": [{"corpus": "c"}]})
    for column in ("speaker", "emotion", "id_hash"):
        if column in changes:
            _edit_index(root, shard, column, changes[column])
    return [line.removeprefix(f"{root}/shards/").partition(": ")[2] for line in damages(root)]


def _edit_index(root: Path, shard: Shard, column: str, value: object) -> None:
    rows = np.load(root / shard.index)
    rows[column] = value
    data = encode_array(rows)
    (root / shard.index).write_bytes(data)
    changed = dataclasses.replace(shard, index_crc32=zlib.crc32(data))
    edit(root, shards=[dataclasses.asdict(changed)], dataset_id=dataset_id([changed]))


def test_a_row_that_does_not_fit_its_sample_is_damage_though_all_bytes_are_as_written(tmp_path: Path) -> None:
    roots = (tmp_path / str(i) for i in range(20))
    assert _one_row(next(roots)) == []
    assert _one_row(next(roots), emotion=1) == ["record and index do not agree on emotion"]
    assert _one_row(next(roots), speaker=7, id_hash=3) == ["record and index do not agree on id and speaker"]
    assert _one_row(next(roots), num_samples=4001) == ["the audio has 4000 samples, the index says 4001"]
    assert _one_row(next(roots), corpus="d") == ["the corpus 'd' is not in dataset.json"]
    assert _one_row(next(roots), prompt="continue_emotion") == [
        "written under the prompt 'continue_emotion', dataset.json says 'continue'"
    ]
    (line,) = _one_row(next(roots), audio=b"no FLAC file")
    assert line.startswith("the audio cannot be decoded")


def test_a_clip_that_is_there_twice_is_named(shard_set: ShardSet) -> None:
    root = Path(shard_set.url)
    record = json.loads((root / "dataset.json").read_text())
    shards = [*record["shards"], record["shards"][0]]
    edit(root, shards=shards, written=27, dataset_id=dataset_id([Shard(**shard) for shard in shards]))
    tar = root / "shards" / f"{shards[0]['name']}.tar"
    assert damages(root) == [f"{tar} row {i}: an utterance that an earlier row has too" for i in range(4)]


def test_memory_does_not_grow_with_the_tar(tmp_path: Path) -> None:
    """What is read at once is a sample or a chunk."""
    from shards.sets import shard_check, store

    sizes: list[int] = []
    random = np.random.default_rng(1)
    flac = encode_flac(random.integers(-(2**15), 2**15, 16000 * 20).astype(np.int16))

    def fill(tar: TarShard) -> None:
        for i in range(20):
            tar.add(Utterance(id=str(i), audio="a", text="t", corpus="c"), None, flac, 320_000)

    with NewSet.begin(tmp_path / "set", {}) as new:
        shard = new.write_shard(0, fill)
        assert shard is not None
        assert shard.bytes > 10 * len(flac)
        new.finish([shard], [], 0, {"prompt": None, "corpora": [{"corpus": "c"}]})
    real = store.FolderStore.read_ranges

    def watched(self: store.FolderStore, ranges: list[store.Range]) -> list[bytes]:
        sizes.append(sum(size for _, _, size in ranges))
        return real(self, ranges)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.FolderStore, "read_ranges", watched)
        assert damages(tmp_path / "set") == []
    assert max(sizes) < max(len(flac) + 4096, shard_check._CHUNK_BYTES)
