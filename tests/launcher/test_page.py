"""docs/cluster.md: every command on it is typed by a test, or is one of a few that cannot be, and says so itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.launcher import page

TESTS = Path(__file__).resolve().parents[1]
# What no test types, and what the page says of that beside it.
NOT_TYPED = {
    "make .venv/installed": "no test types it; CI begins with it",
    "hf download Qwen/Qwen2.5-7B-Instruct config.json": "neither is typed by a test: tests have no net",
    "hf download openai/whisper-large-v2 config.json": "neither is typed by a test: tests have no net",
}


def asked_of_the_page() -> dict[str, set[str]]:
    """What the functions of `page` are called with, in all tests but this one."""
    asked: dict[str, set[str]] = {"typed": set(), "shown": set(), "said": set()}
    for path in sorted(TESTS.rglob("test_*.py")):
        if path == Path(__file__).resolve():
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            # `type_in` of a test hands on what it is given.
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                name = ast.unparse(node.func)
                function = "said" if name == "type_in" else name.removeprefix("page.")
                if function in asked and (name == "type_in" or name.startswith("page.")):
                    asked[function].add(str(node.args[0].value))
    return asked


def test_no_command_of_the_page_is_without_a_test_but_those_that_say_so() -> None:
    asked = asked_of_the_page()
    with_commands = {heading: (page.typed(heading), page.shown(heading)) for heading in page.sections()}
    assert {heading for heading, (typed, _) in with_commands.items() if typed} == asked["typed"]
    assert {heading for heading, (_, shown) in with_commands.items() if shown} == asked["shown"]
    assert page.in_sentences() - asked["said"] == set(NOT_TYPED)
    text = " ".join(page.PAGE.read_text("utf-8").split())
    assert [why for why in NOT_TYPED.values() if why not in text] == []
    makefile = (TESTS.parent / "Makefile").read_text()
    assert "\ntest: check test-fast\n" in makefile and "\ntest-fast: .venv/installed\n" in makefile


def test_a_command_that_the_page_does_not_have_is_not_typed_for_it() -> None:
    assert page.said("scancel JOB", {"JOB": 7}) == "scancel 7"
    with pytest.raises(AssertionError, match=r"cluster\.md has no command scancel 7"):
        page.said("scancel 7")
