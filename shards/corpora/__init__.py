"""Readers: one file per corpus layout, from a folder as it was unpacked to utterances.

A reader never stops at one bad file or line: it yields a `Reject` and goes on. An unknown emotion is rejected and
counted, never guessed. A layout that is not there at all is a ValueError.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.corpora import emodb, jsonl
from shards.manifest import Reject, write_manifest, write_rejects
from shards.sample import Utterance

READERS: dict[str, Callable[[Path], Iterator[Utterance | Reject]]] = {"emodb": emodb.read, "jsonl": jsonl.read}


@dataclass(frozen=True)
class ManifestCounts:
    """What became of a corpus: `read` = `kept` + all of `dropped` (by reason). `emotions` counts the kept by label."""

    read: int
    kept: int
    dropped: dict[str, int]
    emotions: dict[str, int]


def build_manifest(reader: str, root: Path, out: Path) -> ManifestCounts:
    """Read the corpus at `root` and write `out` (a .jsonl) and its rejects beside it (.rejects.jsonl).

    Raises ValueError for an unknown reader, a layout that is not there, or a corpus of which nothing could be kept.
    """
    if reader not in READERS:
        raise ValueError(f"no reader {reader!r}; there are {', '.join(sorted(READERS))}")
    if out.suffix != ".jsonl":
        raise ValueError(f"{out}: a manifest's name ends in .jsonl")
    utterances: dict[str, Utterance] = {}
    rejects: list[Reject] = []
    for item in READERS[reader](root):
        if isinstance(item, Reject):
            rejects.append(item)
        elif item.id in utterances:
            first = utterances[item.id].audio
            rejects.append(Reject(item.audio, "duplicate_id", f"id {item.id!r} was already taken by {first}"))
        else:
            utterances[item.id] = item
    rejects_path = out.with_suffix(".rejects.jsonl")
    write_rejects(rejects_path, rejects)
    dropped = dict(Counter(reject.reason for reject in rejects).most_common())
    if not utterances:
        reasons = ", ".join(f"{number} {reason}" for reason, number in dropped.items()) or "there is nothing in it"
        raise ValueError(f"{root}: no utterance could be kept ({reasons}); see {rejects_path}")
    write_manifest(out, utterances.values())
    emotions = dict(Counter(utterance.emotion or "none" for utterance in utterances.values()).most_common())
    return ManifestCounts(len(utterances) + len(rejects), len(utterances), dropped, emotions)
