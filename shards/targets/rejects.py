"""Examples of what a set left out, for its report: a few of each reason, from a bounded number of files."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field

from shards.sets.store import Store

_MOST_FILES, _MOST_BYTES = 40, 2**20
_OF_EACH = 3
_LONGEST = 300  # characters of a sentence that is shown


@dataclass(frozen=True)
class RejectExamples:
    """(what was left out, why) of each reason, and of how many files of all they come."""

    of: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    files_read: int = 0
    files: int = 0


def example_rejects(store: Store) -> RejectExamples:
    """From `rejects/` of a set; there may be none. What is no line of rejects is passed over."""
    names = store.names("rejects") if "rejects" in store.folders("") else []
    read = names[:_MOST_FILES]
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for data in store.read_ranges([(f"rejects/{name}", 0, _MOST_BYTES) for name in read]):
        for line in data.decode(errors="replace").splitlines():
            try:
                record = json.loads(line)
                reason, source, detail = (_printed(record[name]) for name in ("reason", "source", "detail"))
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            if len(found[reason]) < _OF_EACH:
                found[reason].append((source[:_LONGEST], detail[:_LONGEST]))
    return RejectExamples(dict(found), len(read), len(names))


def _printed(value: object) -> str:
    """Without half characters, which JSON can say and no page can hold."""
    return str(value).encode("utf-8", "replace").decode()
