"""The commands of docs/cluster.md, for the tests that type them: what they take from here stands there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cluster.md"
_FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
# What a command in the middle of a sentence begins with. A program, or a verb of blsp, that is only named is none.
_PROGRAM = re.compile(
    r"(blsp \w+|\.|apptainer|cat|deepspeed|docker|hf|make|pdsh|pip|printf|sbatch|scancel|scontrol|sinfo|squeue|srun|"
    r"ssh(-\w+)*|tensorboard) \S"
)


def sections() -> dict[str, str]:
    """The page's text by heading."""
    parts = PAGE.read_text("utf-8").split("\n## ")[1:]
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in parts}


def typed(heading: str) -> list[str]:
    """The lines of a section's code blocks, in order."""
    blocks = _FENCED.findall(sections()[heading])
    return [line.strip() for language, block in blocks if language != "yaml" for line in block.splitlines()]


def shown(heading: str) -> list[tuple[str, str]]:
    """A section's commands that stand with what they print, and that."""
    found = re.findall(r"^    \$ (.*)\n((?:(?:    .*)?\n)+)", sections()[heading] + "\n", re.MULTILINE)
    return [(command, re.sub("^    ", "", output, flags=re.MULTILINE).strip()) for command, output in found]


def in_sentences() -> set[str]:
    """The commands between words."""
    text = _FENCED.sub("", PAGE.read_text("utf-8"))
    spans = (" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text))
    return {span for span in spans if _PROGRAM.match(span)}


def said(command: str, blanks: Mapping[str, object] | None = None) -> str:
    """A command that stands between words, with what is to be put in place of its capitals."""
    assert command in in_sentences(), f"{PAGE.name} has no command {command}"
    for blank, value in (blanks or {}).items():
        assert re.search(rf"\b{blank}\b", command), f"{command} has no {blank}"
        command = re.sub(rf"\b{blank}\b", str(value), command)
    return command
