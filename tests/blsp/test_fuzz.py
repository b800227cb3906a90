"""Whatever the files of a run hold: an answer, or one of the errors that the docstrings name, and what was written is
read back."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blsp.checkpoint_folder import MANIFEST, STATE, TrainingState, damage, newest_valid, read_state, write_manifest
from blsp.export import EXPORT_CONFIG, export_config
from blsp.follow import follow
from blsp.tracking import Tracker, read_log
from tests.fuzzing import damaged, fuzz, json_values

names = st.text(max_size=10)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
states = st.builds(
    TrainingState,
    step=st.integers(0, 10**9), plan_hash=names, world_size=st.integers(1, 10**5),
    recipe=st.dictionaries(names, plain, max_size=3), frozen=st.dictionaries(names, names, max_size=3),
    sums=st.lists(st.lists(st.floats(allow_nan=False), max_size=3), max_size=3), saved_at_s=st.floats(0, 1e10),
    best=st.none() | st.fixed_dictionaries({"step": st.integers(0, 99), "value": st.floats(allow_nan=False)}),
    data=st.dictionaries(names, plain, max_size=3),
)  # fmt: skip


@pytest.mark.slow
@fuzz
@given(state=states)
def test_a_state_that_is_written_is_read_back(tmp_path: Path, state: TrainingState) -> None:
    (tmp_path / STATE).write_text(json.dumps(asdict(state)))
    assert read_state(tmp_path) == state


@fuzz
@given(data=st.data())
def test_any_state_is_one_or_a_value_error(tmp_path: Path, data: st.DataObject) -> None:
    known = asdict(TrainingState(4, "x", 2, {"a": {"b": 1}}, {"llm": "h"}, best={"step": 2}))
    field = data.draw(st.sampled_from([*known, "other"]))
    content = json.dumps(known | {field: data.draw(json_values)}).encode()
    (tmp_path / STATE).write_bytes(data.draw(st.just(content) | damaged(content)))
    try:
        state = read_state(tmp_path)
    except ValueError as error:
        assert str(error).startswith(f"{tmp_path / STATE}: is not the state of a training run (")
        assert len(str(error)) < 1000
    else:
        assert state.step >= 0 and json.dumps(asdict(state))


@pytest.mark.slow
@fuzz
@given(data=st.data())
def test_any_manifest_is_damage_in_a_few_words_or_true(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "checkpoints" / "step-000004"
    (folder / "zero").mkdir(parents=True, exist_ok=True)
    (folder / "zero" / "a.pt").write_bytes(b"tensors")
    (folder / STATE).write_text("{}")
    write_manifest(folder)
    told = json.loads((folder / MANIFEST).read_text())
    name = data.draw(st.sampled_from([*told, "../a", "/a", "zero"]) | names)
    entry = data.draw(json_values | st.fixed_dictionaries({"bytes": json_values, "blake2b": json_values}))
    content = json.dumps({**told, name: entry}).encode()
    (folder / MANIFEST).write_bytes(data.draw(st.just(content) | damaged(content)))
    problem = damage(folder)
    said: list[str] = []
    if problem is None:
        assert newest_valid(tmp_path / "checkpoints", said.append) == folder and said == []
        assert json.loads((folder / MANIFEST).read_text()) == told
    else:
        assert problem.isprintable() and len(problem) < 500
        with pytest.raises(ValueError, match="none of its checkpoints is whole"):
            newest_valid(tmp_path / "checkpoints", said.append)
        assert problem in said[0]


EXPORTED = {
    "model": {"audio_window": "30s"}, "parts": ["adapter"], "stage": {"prompts": {"continue": 1}}, "frozen": {},
}  # fmt: skip


@fuzz
@given(data=st.data())
def test_any_export_is_one_or_a_value_error(tmp_path: Path, data: st.DataObject) -> None:
    content = json.dumps(EXPORTED | {data.draw(st.sampled_from([*EXPORTED, "history"])): data.draw(json_values)})
    (tmp_path / EXPORT_CONFIG).write_bytes(data.draw(st.just(content.encode()) | damaged(content.encode())))
    try:
        config = export_config(tmp_path)
    except ValueError as error:
        assert str(error).startswith(f"{tmp_path / EXPORT_CONFIG}: ") and len(str(error)) < 1000
    else:
        assert isinstance(config["parts"], list) and isinstance(config["model"]["audio_window"], str)


steps = st.fixed_dictionaries({"step": st.integers(0, 9)}, optional={"loss": st.floats(allow_nan=False)})
lines = (
    steps.map(lambda line: json.dumps(line).encode())
    | json_values.map(lambda value: json.dumps({"step": value}).encode())
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"\r"))
)


@pytest.mark.slow
@fuzz
@given(content=st.lists(lines, max_size=6))
def test_any_log_is_read_and_followed_without_its_torn_lines(tmp_path: Path, content: list[bytes]) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\n".join(content))
    records = read_log(path)
    assert all(type(record["step"]) is int for record in records)
    whole = read_log_of(path, b"".join(line + b"\n" for line in content))
    assert list(follow(tmp_path, idle_s=0.0005)) == [record for record in whole if record["step"] > 0]


def read_log_of(path: Path, content: bytes) -> list[dict[str, Any]]:
    path.write_bytes(content)
    return read_log(path)


@pytest.mark.slow
@fuzz
@given(content=st.lists(steps, max_size=6))
def test_lines_that_are_logged_are_read_back(tmp_path: Path, content: list[dict[str, Any]]) -> None:
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in content))
    assert read_log(tmp_path / "log.jsonl") == content


@pytest.mark.slow
@fuzz
@given(content=st.lists(lines, max_size=6), launches=st.lists(lines, max_size=3))
def test_no_log_that_is_there_keeps_a_run_from_its_own(
    tmp_path_factory: pytest.TempPathFactory, content: list[bytes], launches: list[bytes]
) -> None:
    run = tmp_path_factory.mktemp("run")
    (run / "log.jsonl").write_bytes(b"\n".join(content))
    (run / "launches.jsonl").write_bytes(b"\n".join(launches))
    said: list[str] = []
    tracker = Tracker(run, 5, said.append)
    for step in itertools.islice(itertools.count(6), 2):
        tracker.log(step, {"loss": 1.0, "pace/steps_s": 0.1})
    tracker.close()
    assert said == []
    assert [record["step"] for record in read_log(run / "log.jsonl")][-2:] == [6, 7]
