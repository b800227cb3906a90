from __future__ import annotations

import io
import json
import resource
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.sets.index import INDEX_ROW, decode_array, encode_array
from shards.sets.shard_set import CorruptSample, Sample, ShardSet
from tests.fuzzing import fuzz
from tests.shards.sets.made import edit


def test_a_folder_that_is_no_shard_set_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="make one with `blsp shard RECIPE`"):
        ShardSet.open(tmp_path)
    (tmp_path / "job.json").write_text("{}")
    with pytest.raises(ValueError, match="unfinished; run the same `blsp shard` again"):
        ShardSet.open(tmp_path)


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


def opened(root: Path) -> str | None:
    """What refuses the set; None when it opens."""
    try:
        ShardSet.open(root)
    except ValueError as error:
        assert len(str(error)) < 1500
        return str(error)
    return None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(2**70),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["format", "dataset_id", "prompt", "corpora", "shards", "audio_files", "teacher"]


@fuzz
@given(data=st.data())
def test_whatever_dataset_json_says_the_answer_is_a_sentence(shard_set: ShardSet, data: st.DataObject) -> None:
    path = Path(shard_set.url) / "dataset.json"
    intact = path.read_bytes()
    try:
        if data.draw(st.booleans()):
            path.write_bytes(data.draw(st.binary(max_size=30) | st.sampled_from([b"[" * 10**5, b"9" * 10**4, b"{}"])))
        else:
            record = json.loads(intact)
            field = data.draw(st.sampled_from(FIELDS))
            inner = record[field][0] if field in ("shards", "corpora") and data.draw(st.booleans()) else record
            if field == "teacher":
                record[field] = {"top_k": data.draw(JSON), "temperatures": data.draw(JSON | st.lists(JSON, max_size=2))}
            else:
                inner[field if inner is record else data.draw(st.sampled_from(sorted(inner)))] = data.draw(JSON)
            path.write_text(json.dumps(record))
        refused = opened(Path(shard_set.url))
        assert refused is None or str(shard_set.url) in refused
    finally:
        path.write_bytes(intact)


@fuzz
@given(data=st.data())
def test_whatever_an_index_holds_the_answer_is_a_sentence(shard_set: ShardSet, data: st.DataObject) -> None:
    """Also with a checksum that fits: whoever made the damage may have made that too."""
    root = Path(shard_set.url)
    record = json.loads((root / "dataset.json").read_text())
    index = root / "index" / f"{record['shards'][0]['name']}.npy"
    intact = index.read_bytes()
    changed = bytearray(intact)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(intact) - 1) | st.integers(0, 127))
        changed[place : place + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    try:
        index.write_bytes(changed)
        record["shards"][0]["index_crc32"] = zlib.crc32(changed)
        edit(root, shards=record["shards"])
        if (refused := opened(root)) is None:
            read = ShardSet.open(root)
            for sample in read.read_many(range(4)):
                assert isinstance(sample, Sample | CorruptSample)
        else:
            assert f"{index}: damaged (" in refused
    finally:
        index.write_bytes(intact)
        record["shards"][0]["index_crc32"] = zlib.crc32(intact)
        edit(root, shards=record["shards"])


@pytest.mark.parametrize("rows", [10**9, 2**61])
def test_a_header_that_claims_much_takes_no_memory(shard_set: ShardSet, rows: int) -> None:
    root = Path(shard_set.url)
    record = json.loads((root / "dataset.json").read_text())
    index = root / "index" / f"{record['shards'][0]['name']}.npy"
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": INDEX_ROW.descr, "fortran_order": False, "shape": (rows,)})
    index.write_bytes(content.getvalue() + bytes(4 * INDEX_ROW.itemsize))
    record["shards"][0] |= {"rows": rows, "index_crc32": zlib.crc32(index.read_bytes())}
    edit(root, shards=record["shards"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "damaged (" in (opened(root) or "")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_many_threads_read_arrays_at_once() -> None:
    """numpy's own parser of headers fails here now and then: it compiles them as Python."""
    data = encode_array(np.zeros(3, INDEX_ROW))
    with ThreadPoolExecutor(16) as pool:
        for rows in pool.map(lambda _: decode_array(data, INDEX_ROW, 3), range(3000)):
            assert len(rows) == 3
