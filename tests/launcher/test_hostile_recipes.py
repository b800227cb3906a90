"""A recipe that somebody means ill by costs a sentence, few seconds and little memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.recipe_files import find, load
from launcher.recipe_yaml import RecipeError
from tests.bounds import bounded
from tests.launcher.test_recipe_files import GOOD

SECONDS, MEGABYTES = 20.0, 200  # 256 KiB of YAML take up to 4 s and 30 MB
LAUGHS = "a: &a [x, x]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{f'*{chr(97 + i)},' * 10}]\n" for i in range(9))
AN_INT = "9" * 4000

ATTACKS = {
    "a billion laughs": (LAUGHS, "aliases (*name) are not used in recipes"),
    "an alias of itself": ("a: &a [*a]\n", "aliases (*name) are not used in recipes"),
    "code": ('kind: !!python/object/apply:os.mkdir ["{ran}"]\n', "cannot be read as 'tag:yaml.org,2002:python/object"),
    "code for a name": ("kind: !!python/name:os.system x\n", "cannot be read as tag:yaml.org,2002:python/name"),
    "code among keys": ("? !!python/object/apply:os.mkdir [{ran}]\n: 1\n", "holds a key that is no plain word"),
    "code in a section": (GOOD.replace("model:", "model: !!python/object:os.x"), "model: cannot be read as"),
    "another's tag": (GOOD.replace("768", "!mine 768"), "'768' cannot be read as !mine"),
    "keys of keys": (GOOD + "? {a: {b: [c]}}\n: c\n", "recipe.yaml:19: holds a key that is no plain word"),
    "merged keys": (GOOD + "<<: {run: other}\n", "<<: unknown key"),
    "a key twice": (GOOD + '"run": other\n', "run: appears twice"),
    "open brackets": ("[" * 100_000, "nested more than 32 deep"),
    "brackets": ("a: " + "[" * 100_000 + "]" * 100_000, "nested more than 32 deep"),
    "deep blocks": ("".join(" " * i + "a:\n" for i in range(500)), "nested more than 32 deep"),
    "deep lists": ("- " * 20_000, "nested more than 32 deep"),
    "deep in DeepSpeed's settings": (
        GOOD + f"  deepspeed: {{a: {'[' * 400}{']' * 400}}}\n",
        "nested more than 32 deep",
    ),
    "no number": (GOOD.replace("768", '!!int ""'), "'' cannot be read as"),
    "no truth": (GOOD.replace("768", "!!bool x"), "'x' cannot be read as"),
    "no time": (GOOD.replace("768", "!!timestamp x"), "'x' cannot be read as"),
    "no character": (GOOD.replace("some/llm", r'"\UFFFFFFFF"'), "recipe.yaml:4: not valid YAML: an escape or a number"),
    "half a character": (GOOD.replace("runs/stage1", r'"\uD800"'), "holds a control character, or half"),
    "half a key": (GOOD + '"\\uD800": 1\n', "recipe.yaml:19: holds a key that is no plain word"),
    "the end of a name": (GOOD.replace("runs/stage1", r'"a\0b"'), r"run: 'a\x00b' holds a control character"),
    "words to a terminal": (GOOD.replace("some/llm", r'"\e]0;x\a"'), r"'\x1b]0;x\x07' holds a control character"),
    "a long version": (f"%YAML {'9' * 5000}.1\n---\n{GOOD}", "not valid YAML: an escape or a number out of range"),
    "a long number": (GOOD.replace("768", "9" * 5000), "cannot be read as"),
    "a number beyond all": (GOOD.replace("model:\n", f"model:\n  adapter: {{kernels: [{AN_INT}]}}\n"), "is too large"),
    "one long word": (GOOD.replace("kind: train", f"kind: {'://' * 60_000}"), "kind: is '://://://"),
    "a huge file": (GOOD + "#" * 2**20, "larger than 256 KiB, which no recipe is"),
}
LONG_ATTACKS = {
    "keys nobody knows": (GOOD + "".join(f"k{i}: 1\n" for i in range(24_000)), "... and more errors"),
    "the same key": (GOOD + "k: v\n" * 50_000, "... and more errors"),
    "half-known keys": (GOOD.replace("model:\n", "model:\n" + "  llmm: 1\n" * 20_000), "... and more errors"),
    "lists": ("- a: b\n" * 37_000, "a recipe is a mapping of sections, not list"),
    "braces": ("a: [" + "{}," * 87_000, "not valid YAML"),
    "escapes": (GOOD.replace("run: runs/stage1", 'run: ["' + "\\u0041" * 43_000 + '"]'), "run: is not a valid path"),
}


def attack(folder: Path, text: str, what: str) -> None:
    path = folder / "recipe.yaml"
    path.write_text(text.replace("{ran}", str(folder / "ran")), "utf-8")
    ended = bounded(lambda: load(path), seconds=SECONDS, megabytes=MEGABYTES)
    assert ended.error == "RecipeError"
    assert what in ended.said
    assert len(ended.said) < 120_000
    assert ended.said.isprintable() or "\n" in ended.said
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_recipe_is_refused_with_a_sentence_and_within_bounds(tmp_path: Path, name: str) -> None:
    attack(tmp_path, *ATTACKS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG_ATTACKS)
def test_the_longest_recipes_take_seconds_and_tell_a_hundred_errors(tmp_path: Path, name: str) -> None:
    attack(tmp_path, *LONG_ATTACKS[name])


@pytest.mark.parametrize(
    "override",
    ["data.\udcff=1", "data.x\x1b[2J=1", ".".join("a" * 40) + "=1", "data.seed=" + "1" * 300_000],
)
def test_a_hostile_override_is_refused_before_it_is_applied(tmp_path: Path, override: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD, "utf-8")
    with pytest.raises(RecipeError, match=r"override '(?s:.)*(expected section\.field=value|\.\.\.)") as refused:
        load(path, [override])
    str(refused.value).encode()


def test_a_position_in_a_list_is_a_number_of_a_few_digits(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD, "utf-8")
    with pytest.raises(RecipeError, match=r"stage\.train is a list of 1"):
        load(path, [f"stage.train.{'9' * 5000}=lora"])


def test_a_name_that_no_file_system_takes_is_no_recipe() -> None:
    for name in ("x" * 5000, "a\0b", "$(touch x);`id`", "-rf", "\udcff"):
        with pytest.raises(RecipeError, match="no recipe file or shipped recipe"):
            find(name)


def test_keys_in_addresses_are_left_out_of_a_long_line_too() -> None:
    line = f"a: {'x' * 2000} s3://AKIA:sec/ret@bucket"
    assert "sec" not in str(RecipeError(line))
    assert str(RecipeError("'s3://AK:s@a@b/c' x")) == "'s3://...@b/c' x"
    assert str(RecipeError("got 's3://b/x?X-Amz-Token=s&y=z'")) == "got 's3://b/x://...@'"
