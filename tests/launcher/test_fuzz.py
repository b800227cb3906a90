"""Whatever a recipe or an override says: a recipe, or a RecipeError that can be printed; plain values read back."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.recipe_files import load
from launcher.recipe_yaml import RecipeError, RecipeYaml, to_yaml
from tests.fuzzing import damaged, fuzz, json_values
from tests.launcher.test_recipe_files import GOOD

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
printable = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | printable,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(printable, inner, max_size=3),
    max_leaves=8,
)
pieces = st.sampled_from([
    "a", "model", " ", "  ", "\n", "\n  ", "- ", "? ", ": ", ":", ",", "[", "]", "{", "}", "'", '"', "\\", "|", ">-",
    "&x", "*x", "!!", "!!int ", "!!python/name:os.x ", "%TAG ! x\n", "---\n", "...\n", "<<: ", "#", "1e5", "~", "\t",
    "\\UFFFFFFFF", "\\ud800", "\x00", "\x1b", "\ufeff", "\u2028", "0x1", "9" * 5000, "runs/x", "s3://a:b@c/d", "é",
])  # fmt: skip
texts = st.lists(pieces | printable, max_size=12).map("".join)
places = st.sampled_from([
    "run", "kind", "model", "model.llm", "model.adapter", "stage.train", "stage.train.0", "data.seed",
    "stage.train.9", "optim.lr.adapter", "data.mixture", "engine.deepspeed", "engine.deepspeed.a.b", "validation",
    "x.y", "data.shards.0",
])  # fmt: skip


def checked(path: Path, overrides: list[str]) -> None:
    try:
        recipe = load(path, overrides)
    except RecipeError as error:
        said = str(error)
        assert said.encode() and not CONTROL.search(said) and len(said) < 120_000
        assert "a:b@c" not in said
    else:
        assert to_yaml(recipe.model_dump(mode="json")).encode()


@pytest.mark.slow
@fuzz
@given(content=st.dictionaries(printable, values, max_size=4))
def test_plain_values_read_back_as_they_were(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(to_yaml(content), "utf-8")
    read = RecipeYaml(path)
    assert read.errors == []
    assert same(read.values, content)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or math.isclose(one, other))


@pytest.mark.slow
@fuzz
@given(place=st.floats(0, 1), text=texts, content=damaged(GOOD.encode()), whole=st.booleans())
def test_any_file_is_a_recipe_or_a_recipe_error(
    tmp_path: Path, place: float, text: str, content: bytes, whole: bool
) -> None:
    path, at = tmp_path / "a.yaml", int(place * len(GOOD))
    path.write_bytes((GOOD[:at] + text + GOOD[at:]).encode("utf-8", "surrogatepass") if whole else content)
    checked(path, [])


@pytest.mark.slow
@fuzz
@given(place=places | texts, value=texts | json_values.map(str), other=st.lists(texts, max_size=1))
def test_any_overrides_are_applied_or_refused(tmp_path: Path, place: str, value: str, other: list[str]) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(GOOD, "utf-8")
    checked(path, [f"{place}={value}", *other])
