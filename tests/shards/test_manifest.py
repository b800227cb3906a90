from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.manifest import parse_line, read_manifest, write_manifest
from shards.sample import EMOTIONS, Utterance
from tests.fuzzing import damaged, fuzz, json_values

names = st.text(string.ascii_letters + string.digits + "_-.äß文", min_size=1, max_size=20)
utterances = st.builds(
    Utterance,
    id=st.text(min_size=1),
    audio=names.map("/somewhere/clip{}".format),
    text=st.text(),
    corpus=names,
    start_s=st.floats(0, 1e6),
    duration_s=st.none() | st.floats(0.1, 1e4),
    emotion=st.none() | st.sampled_from(EMOTIONS),
    speaker=st.none() | names,
)


@fuzz
@given(rows=st.lists(utterances, min_size=1, max_size=5, unique_by=lambda utterance: utterance.id))
def test_what_is_written_is_read_sorted_by_id(tmp_path: Path, rows: list[Utterance]) -> None:
    write_manifest(tmp_path / "m.jsonl", rows)
    assert read_manifest(tmp_path / "m.jsonl") == sorted(rows, key=lambda utterance: utterance.id)


def test_a_corpus_moves_together_with_its_manifest(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    inside = Utterance(id="a", audio=str(here / "wav" / "a.wav"), text="", corpus="c")
    outside = Utterance(id="b", audio="/elsewhere/b.wav", text="", corpus="c")
    write_manifest(here / "m.jsonl", [inside, outside])
    here.rename(there)
    paths = [utterance.audio for utterance in read_manifest(there / "m.jsonl")]
    assert paths == [str(there / "wav" / "a.wav"), "/elsewhere/b.wav"]


def test_every_bad_line_is_named_with_its_number(tmp_path: Path) -> None:
    good = '{"id": "a", "audio": "a.wav", "text": "", "corpus": "c"}'
    bad = [
        "{",
        "[1]",
        good.replace('"c"', '"c", "emotion": "glad"'),
        good,
        good.replace('"a"', '"b"').replace('"text"', '"txt"'),
        good.replace('"a"', '"b"').replace('""', "3"),
    ]
    path = tmp_path / "m.jsonl"
    path.write_bytes("\n".join([good, "", *bad]).encode() + b"\n\xff\xfe")
    with pytest.raises(ValueError) as error:
        read_manifest(path)
    parts = (
        "not JSON",
        "a JSON object",
        "unknown emotion 'glad'",
        "already used in line 1",
        "'txt'",
        "str, got 3",
        "UTF-8",
    )
    for line, (found, part) in enumerate(zip(str(error.value).splitlines(), parts, strict=True), start=3):
        assert found.startswith(f"{path}:{line}: ")
        assert part in found


def test_only_ten_bad_lines_are_shown(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text("{\n" * 25)
    with pytest.raises(ValueError, match="and 15 more bad lines"):
        read_manifest(tmp_path / "m.jsonl")


def test_an_empty_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match="empty manifest; make one with `blsp manifest"):
        read_manifest(tmp_path / "m.jsonl")


@fuzz
@given(line=st.binary(max_size=60))
def test_any_bytes_are_an_object_or_a_value_error(line: bytes) -> None:
    try:
        assert isinstance(parse_line(line), dict)
    except ValueError as error:
        assert str(error)


LINE = {"id": "a", "audio": "a.wav", "text": "Yes.", "corpus": "c", "start_s": 0.5, "messages": [
    {"role": "user", "text": "I saw it.", "audio": "b.wav"}, {"role": "assistant", "text": "What?"}]}  # fmt: skip


@pytest.mark.slow
@fuzz
@given(data=st.data())
def test_any_line_is_an_utterance_that_reads_back_or_is_named(tmp_path: Path, data: st.DataObject) -> None:
    line = {**LINE, data.draw(st.sampled_from([*LINE, "duration_s", "emotion", "x"])): data.draw(json_values)}
    line["messages"] = data.draw(st.just(line["messages"]) | st.lists(json_values | messages(data), max_size=3))
    content = json.dumps(line).encode()
    path = tmp_path / "m.jsonl"
    path.write_bytes(data.draw(st.just(content) | damaged(content)))
    try:
        rows = read_manifest(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}") and str(error).replace("\n", "").isprintable()
    else:
        write_manifest(tmp_path / "again.jsonl", rows)
        assert read_manifest(tmp_path / "again.jsonl") == sorted(rows, key=lambda utterance: utterance.id)


def messages(data: st.DataObject) -> st.SearchStrategy[dict[str, object]]:
    """Turns with a field of anything."""
    field = data.draw(st.sampled_from(["role", "text", "audio", "start_s", "duration_s", "num_samples"]))
    turns = st.sampled_from([{"role": "user", "text": "a", "audio": "b"}, {"role": "assistant", "text": "a"}])
    return st.builds(lambda turn, value: {**turn, field: value}, turns, json_values)
