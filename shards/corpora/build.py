"""From a corpus to its manifest: every utterance with an id of its own, sorted, and every drop with its reason.

The largest corpora have millions of utterances: they are sorted in parts that are merged from disk.
"""

from __future__ import annotations

import difflib
import heapq
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shards.corpora import emodb, jsonl
from shards.corpora.corpus import Corpus, Items
from shards.corpora.text import TextStyle, styled
from shards.manifest import Reject, parse_utterance, write_rejects, write_sorted_manifest
from shards.sample import Utterance

CORPORA: dict[str, Corpus] = {
    "emodb": emodb.CORPUS,
    "jsonl": jsonl.CORPUS,
}

_PART = 100_000  # utterances that are sorted in memory at once


@dataclass
class ManifestCounts:
    """What became of a corpus: `read` = `kept` + all of `dropped` (by reason). The others count the kept."""

    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    emotions: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)

    @property
    def read(self) -> int:
        """All that the reader spoke of."""
        return self.kept + self.dropped.total()

    def add(self, utterance: Utterance) -> None:
        """One more is kept."""
        self.kept += 1
        self.emotions[utterance.emotion or "none"] += 1
        self.splits[utterance.split] += 1


def build_manifest(
    corpus: str, root: Path, out: Path, text: TextStyle = "lower", subset: str | None = None
) -> ManifestCounts:
    """Read the corpus at `root` and write `out` (a .jsonl) and its rejects beside it (.rejects.jsonl).

    Raises ValueError for an unknown corpus or subset, a layout that is not there, or a corpus of which nothing could be
    kept.
    """
    if out.suffix != ".jsonl":
        raise ValueError(f"{out}: a manifest's name ends in .jsonl")
    items = _items(corpus, root, subset)
    counts, rejects = ManifestCounts(), []

    def kept(utterances: Iterator[Utterance]) -> Iterator[Utterance]:
        """Those with an id of their own."""
        first: Utterance | None = None
        for utterance in utterances:
            if first is not None and utterance.id == first.id:
                detail = f"id {utterance.id!r} was already taken by {first.audio}"
                rejects.append(Reject(utterance.audio, "duplicate_id", detail))
                continue
            first = utterance
            counts.add(utterance)
            yield utterance

    rejects_path = out.with_suffix(".rejects.jsonl")
    with tempfile.TemporaryDirectory(prefix="blsp-manifest-") as scratch:
        parts = [*_sorted_parts(_usable(items, text, rejects), Path(scratch))]
        if parts:
            write_sorted_manifest(out, kept(heapq.merge(*map(_read_part, parts), key=lambda utterance: utterance.id)))
    counts.dropped.update(reject.reason for reject in rejects)
    write_rejects(rejects_path, rejects)
    if not counts.kept:
        reasons = ", ".join(f"{number} {reason}" for reason, number in counts.dropped.most_common())
        raise ValueError(
            f"{root}: no utterance could be kept ({reasons or 'there is nothing in it'}); see {rejects_path}"
        )
    return counts


def _items(corpus: str, root: Path, subset: str | None) -> Items:
    if corpus not in CORPORA:
        near = difflib.get_close_matches(corpus, CORPORA, n=1)
        raise ValueError(
            f"no reader {corpus!r}; {f'the nearest is {near[0]}; ' if near else ''}there are {', '.join(CORPORA)}"
        )
    found = CORPORA[corpus]
    if subset is None:
        return found.read(root)
    if found.read_subset is None:
        raise ValueError(f"{corpus} has no subsets; leave --subset {subset} out")
    if subset not in found.subsets:
        raise ValueError(f"{corpus} has no subset {subset!r}; there are {', '.join(found.subsets)}")
    return found.read_subset(root, subset)


def _usable(items: Items, text: TextStyle, rejects: list[Reject]) -> Iterator[Utterance]:
    """The utterances that say something, their texts in one style; `rejects` get the others."""
    for item in items:
        if isinstance(item, Utterance):
            utterance = styled(item, text)
            if utterance.text:
                yield utterance
                continue
            item = Reject(utterance.audio, "no_text", f"the transcript of {utterance.id!r} is empty")
        rejects.append(item)


def _sorted_parts(utterances: Iterator[Utterance], scratch: Path) -> Iterator[Path]:
    """Files of utterances sorted by id; equal ids stay in the order in which they were read."""
    for number in itertools.count():
        part = sorted(itertools.islice(utterances, _PART), key=lambda utterance: utterance.id)
        if not part:
            return
        path = scratch / f"{number}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(utterance.to_json()) + "\n" for utterance in part)
        yield path


def _read_part(path: Path) -> Iterator[Utterance]:
    with path.open("rb") as file:
        yield from map(parse_utterance, file)
