"""Whatever lies in the place of an owner's claim: the folder is owned, or the error is one that is documented."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import owner
from cluster.json_files import parse_object
from cluster.owner import Claim, owned
from tests.fuzzing import damaged, fuzz, json_values

texts = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), max_size=9)
claims = st.builds(Claim, texts, texts, st.integers(), texts, st.integers(), texts, st.booleans())
numbers = st.sampled_from(["000001", "1", "999999", "1000000", "9" * 18, "9" * 30, "1x", "x", "-1", "\u0663"])


@fuzz
@given(claim=claims)
def test_a_claim_that_is_written_is_read_back(tmp_path: Path, claim: Claim) -> None:
    (tmp_path / "000001.json").write_text(json.dumps(asdict(claim)))
    assert owner._read(tmp_path / "000001.json") == claim


@pytest.mark.slow
@fuzz
@given(data=st.data())
def test_any_claims_leave_the_folder_ours_or_say_whose_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    monkeypatch.setattr(owner, "_LEASE_S", 0.001)
    monkeypatch.setattr(owner, "_BEAT_S", 0.001)
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / ".owner").mkdir(parents=True)
    mine = asdict(Claim("far", "other", 3, "7", 0))
    for number in data.draw(st.lists(numbers, max_size=3, unique=True)):
        field = data.draw(st.sampled_from([*mine, "other"]))
        content = json.dumps(mine | {field: data.draw(json_values)}).encode()
        (folder / ".owner" / f"{number}.json").write_bytes(data.draw(st.just(content) | damaged(content)))
    said: list[str] = []
    try:
        with owned(folder, said.append) as held:
            held.check()
    except (ValueError, OSError) as error:
        assert str(error).startswith(str(folder)) and str(error).isprintable() and len(str(error)) < 1000
    assert all(sentence.isprintable() for sentence in said)


@fuzz
@given(content=st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_an_object_of_bounded_depth_or_a_value_error(content: bytes) -> None:
    try:
        value = parse_object(content)
    except ValueError as error:
        assert len(str(error)) < 300
    else:
        assert isinstance(value, dict) and repr(value) and json.dumps(value)
