"""What the documents point at is there, and nothing was left to be filled in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shards.corpora.build import CORPORA
from shards.sample import EMOTIONS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", document.read_text("utf-8"))
    assert [t for t in targets if "://" not in t and not (document.parent / t).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_nothing_waits_to_be_filled_in(document: Path) -> None:
    assert re.findall(r"<<<\w+>>>|TODO|TBD", document.read_text("utf-8")) == []


def test_recipes_that_the_readme_names_ship() -> None:
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"\b((?:mini|shard|stage[12]|authors)_(?!\w+\.py)[\w.-]+?)(?:\s|`|$)", text))
    shipped = {path.stem for path in (ROOT / "launcher" / "recipes").glob("*.yaml")}
    assert named and named <= shipped


def test_every_test_that_the_page_on_reliability_names_is_there() -> None:
    """`tests/a/test_b.py`, `tests/a/test_b.py::test_c`, or `test_b.py` beside the one before in its row."""
    page = (ROOT / "docs" / "reliability.md").read_text("utf-8")
    missing, folder, number = [], ROOT / "tests", 0
    for path, name, case in re.findall(r"`(tests/[\w/]+/)?(test_\w+\.py)(?:::(\w+))?`", page):
        folder, number = ROOT / path if path else folder, number + 1
        file = folder / name
        found = file.is_file() and (not case or f"def {case}(" in file.read_text("utf-8"))
        missing += [] if found else [f"{path}{name}::{case}"]
    assert (missing, number > 30) == ([], True)


def test_every_promise_on_the_page_on_reliability_has_a_test() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text("utf-8").splitlines()
    headed = [place for place, line in enumerate(page) if re.fullmatch(r"\|.*\| (the )?test[^|]* \|", line)]
    assert len(headed) > 5
    for head in headed:
        for row in page[head + 2 : page.index("", head)]:
            proof = row.rstrip(" |").rpartition(" | ")[2]
            assert re.search(r"`(tests/)?[\w/]*test_\w+\.py|the same", proof), row


def corpora_page() -> tuple[dict[str, list[str]], dict[str, str]]:
    """Of docs/corpora.md the cells of each corpus's row, and the text of its section."""
    page = (ROOT / "docs" / "corpora.md").read_text("utf-8")
    rows = {
        row[1]: [cell.strip() for cell in row[2].split("|")]
        for row in re.finditer(r"^\| \[(\w+)\]\(#\1\) \|(.*)\|$", page, re.MULTILINE)
    }
    sections = re.split(r"^## (\w+)$", page, flags=re.MULTILINE)
    return rows, dict(zip(sections[1::2], sections[2::2], strict=True))


def test_the_page_on_corpora_lists_them_in_order() -> None:
    rows, sections = corpora_page()
    assert list(rows) == list(sections) == sorted(CORPORA)


@pytest.mark.parametrize("name", CORPORA)
def test_the_page_on_corpora_says_what_the_reader_does(name: str) -> None:
    """Its command, its terms as they are recorded with every clip, and its emotions."""
    rows, sections = corpora_page()
    _, language, _, terms, emotions, _ = rows[name]
    assert f"blsp manifest {name} " in sections[name]
    if CORPORA[name].licence:
        assert (terms, bool(language)) == (CORPORA[name].licence, True)
    if found := CORPORA[name].official_emotions:
        theirs = ", ".join(emotion for emotion in EMOTIONS if found.get(emotion))
        assert emotions.replace("all five", ", ".join(EMOTIONS)) == theirs
