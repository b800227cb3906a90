"""Tables, transcripts and lists of all corpora, damaged: a reader gives utterances and rejects, or a ValueError."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.corpora.build import CORPORA
from shards.manifest import Reject
from shards.sample import Utterance
from tests.fuzzing import damaged, fuzz, json_values
from tests.shards.corpora.miniatures import Made, miniature, names

pytestmark = pytest.mark.slow

TEXTS = {".csv", ".gz", ".json", ".jsonl", ".tsv", ".txt"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """A miniature of each corpus."""
    return {name: miniature(name).make(tmp_path_factory.mktemp(name)) for name in names()}


def texts(made: Made) -> list[Path]:
    """All files of a miniature that are read as text."""
    folder = made.root if made.root.is_dir() else made.root.parent
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in TEXTS)


def read(name: str, made: Made) -> None:
    """Raises whatever a reader must not raise."""
    corpus = CORPORA[name]
    try:
        items = (
            corpus.read_subset(made.root, made.subset) if corpus.read_subset and made.subset else corpus.read(made.root)
        )
        for item in items:
            assert isinstance(item, Utterance | Reject)
    except ValueError as error:
        if type(error) is not ValueError:  # such as UnicodeDecodeError, which is no sentence of ours
            raise


@fuzz
@given(data=st.data())
def test_damaged_texts_are_told(data: st.DataObject, made: dict[str, Made]) -> None:
    name = data.draw(st.sampled_from([name for name in made if texts(made[name])]))
    path = data.draw(st.sampled_from(texts(made[name])))
    whole = path.read_bytes()
    try:
        if path.suffix == ".gz" and data.draw(st.booleans()):
            path.write_bytes(gzip.compress(data.draw(damaged(gzip.decompress(whole)))))
        else:
            path.write_bytes(data.draw(damaged(whole)))
        read(name, made[name])
    finally:
        path.write_bytes(whole)


def places(value: object, way: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """The ways to all values in a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [way, *(found for key, inner in pairs for found in places(inner, (*way, key)))]


def change(record: dict[str, Any], data: st.DataObject) -> None:
    """Puts something else in the place of a value."""
    way = data.draw(st.sampled_from(places(record)[1:]))
    inner: Any = record
    for key in way[:-1]:
        inner = inner[key]
    inner[way[-1]] = data.draw(json_values)


@fuzz
@given(data=st.data())
def test_lines_of_json_may_hold_anything(data: st.DataObject, made: dict[str, Made]) -> None:
    name = data.draw(st.sampled_from(["jsonl", "lhotse", "speechalpaca"]))
    path = data.draw(st.sampled_from(texts(made[name])))
    whole = path.read_bytes()
    plain = gzip.decompress(whole) if path.suffix == ".gz" else whole
    record = json.loads(data.draw(st.sampled_from(plain.splitlines())))
    change(record, data)
    changed = json.dumps(record).encode()
    try:
        path.write_bytes(gzip.compress(changed) if path.suffix == ".gz" else changed)
        read(name, made[name])
    finally:
        path.write_bytes(whole)


@fuzz
@given(data=st.data())
def test_one_large_object_of_json_may_hold_anything(data: st.DataObject, made: dict[str, Made]) -> None:
    name = data.draw(st.sampled_from(["gigaspeech", "wenetspeech"]))
    (path,) = texts(made[name])
    whole = path.read_bytes()
    record = json.loads(whole)
    change(record, data)
    try:
        path.write_text(json.dumps(record))
        read(name, made[name])
    finally:
        path.write_bytes(whole)
