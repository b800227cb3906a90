"""What the documents point at is there, and nothing was left to be filled in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
