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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from shards.corpora import (
    aesdd,
    aishell,
    cafe,
    commonvoice,
    cremad,
    emodb,
    esd,
    gigaspeech,
    iemocap,
    jsonl,
    lhotse,
    librispeech,
    mead,
    meld,
    mer2023,
    mls,
    mosei,
    ravdess,
    resd,
    speechalpaca,
    table,
    voxpopuli,
    wenetspeech,
)
from shards.corpora.corpus import Corpus, Items
from shards.corpora.overlap import Owners, SplitTexts, plain
from shards.corpora.stats import SplitStats
from shards.corpora.text import TextStyle, styled
from shards.manifest import Reject, parse_utterance, write_rejects, write_sorted_manifest
from shards.sample import Utterance

CORPORA: dict[str, Corpus] = {
    "aesdd": aesdd.CORPUS,
    "aishell": aishell.CORPUS,
    "cafe": cafe.CORPUS,
    "commonvoice": commonvoice.CORPUS,
    "cremad": cremad.CORPUS,
    "csv": table.CORPUS,
    "emodb": emodb.CORPUS,
    "esd": esd.CORPUS,
    "gigaspeech": gigaspeech.CORPUS,
    "iemocap": iemocap.CORPUS,
    "jsonl": jsonl.CORPUS,
    "lhotse": lhotse.CORPUS,
    "librispeech": librispeech.CORPUS,
    "mead": mead.CORPUS,
    "meld": meld.CORPUS,
    "mer2023": mer2023.CORPUS,
    "mls": mls.CORPUS,
    "mosei": mosei.CORPUS,
    "ravdess": ravdess.CORPUS,
    "resd": resd.CORPUS,
    "speechalpaca": speechalpaca.CORPUS,
    "voxpopuli": voxpopuli.CORPUS,
    "wenetspeech": wenetspeech.CORPUS,
}

_PART = 100_000  # utterances that are sorted in memory at once


@dataclass
class ManifestCounts:
    """What became of a corpus: `read` = `kept` + all of `dropped` (by reason)."""

    splits: dict[str, SplitStats] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    texts: SplitTexts = field(default_factory=SplitTexts)

    @property
    def kept(self) -> int:
        """Utterances in the manifest."""
        return sum(split.clips for split in self.splits.values())

    @property
    def emotions(self) -> Counter[str]:
        """Of the kept."""
        return sum((split.emotions for split in self.splits.values()), Counter())

    @property
    def read(self) -> int:
        """All that the reader spoke of."""
        return self.kept + self.dropped.total()

    def add(self, utterance: Utterance) -> None:
        """One more is kept."""
        self.splits.setdefault(utterance.split, SplitStats()).add(utterance)
        self.texts.add(utterance)


def build_manifest(
    corpus: str,
    root: Path,
    out: Path,
    text: TextStyle = "lower",
    subset: str | None = None,
    *,
    disjoint_texts: bool = False,
) -> ManifestCounts:
    """Read the corpus at `root` and write `out` (a .jsonl) and its rejects beside it (.rejects.jsonl).

    With `disjoint_texts` no text is in two splits (`SplitTexts.owners`); what that costs is rejected, too. Raises
    ValueError for an unknown corpus or subset, a layout that is not there, a corpus of which nothing could be kept, or
    an `out` that would take the place of what is read.
    """
    if out.suffix != ".jsonl":
        raise ValueError(f"{out}: a manifest's name ends in .jsonl")
    rejects_path = out.with_suffix(".rejects.jsonl")
    _refuse_to_overwrite(root, out, rejects_path)
    items = _items(corpus, root, subset)
    counts = ManifestCounts()
    with tempfile.TemporaryDirectory(prefix="blsp-manifest-") as scratch, _Rejects(Path(scratch)) as rejects:
        parts = [*_sorted_parts(_usable(items, text, rejects), Path(scratch))]
        texts = SplitTexts()
        for utterance in _unique(parts, None) if disjoint_texts else ():
            texts.add(utterance)

        def kept() -> Iterator[Utterance]:
            for utterance in _left(_unique(parts, rejects), texts.owners(), rejects):
                counts.add(utterance)
                yield utterance

        if parts:
            write_sorted_manifest(out, kept())
        counts.dropped = rejects.reasons
        write_rejects(rejects_path, rejects)
    if not counts.kept:
        reasons = ", ".join(f"{number} {reason}" for reason, number in counts.dropped.most_common())
        raise ValueError(
            f"{root}: no utterance could be kept ({reasons or 'there is nothing in it'}); see {rejects_path}"
        )
    return counts


def _refuse_to_overwrite(root: Path, out: Path, rejects: Path) -> None:
    for path in (out, rejects):
        if path.exists() and root.exists() and path.samefile(root):
            raise ValueError(f"{path}: is what is read, and would be overwritten; give the manifest another name")
    if root.is_dir() and out.is_file() and out.resolve().is_relative_to(root.resolve()):
        with out.open("rb") as file:
            first = file.readline()
        try:
            parse_utterance(first)
        except ValueError:
            raise ValueError(
                f"{out}: is there, belongs to the corpus and is no manifest; give the manifest another name"
            ) from None


class _Rejects:
    """Rejects in the order in which they come, counted by reason; they are kept on disk, for a corpus whose audio is
    elsewhere has as many as utterances."""

    def __init__(self, scratch: Path) -> None:
        self.reasons: Counter[str] = Counter()
        self._file = (scratch / "rejects").open("w+", encoding="ascii")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, reject: Reject) -> None:
        """One more."""
        self.reasons[reject.reason] += 1
        self._file.write(json.dumps([reject.source, reject.reason, reject.detail]) + "\n")

    def __iter__(self) -> Iterator[Reject]:
        self._file.seek(0)
        for line in self._file:
            yield Reject(*json.loads(line))


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


def _usable(items: Items, text: TextStyle, rejects: _Rejects) -> Iterator[Utterance]:
    """The utterances that say something, their texts in one style; `rejects` get the others."""
    for item in items:
        if isinstance(item, Utterance):
            utterance = styled(item, text)
            if plain(utterance.text):
                yield utterance
                continue
            item = Reject(
                utterance.audio, "no_text", f"the transcript of {utterance.id!r} has no word: {utterance.text!r}"
            )
        rejects.append(item)


def _sorted_parts(utterances: Iterator[Utterance], scratch: Path) -> Iterator[Path]:
    """Files of utterances sorted by id; equal ids stay in the order in which they were read."""
    for number in itertools.count():
        part = sorted(itertools.islice(utterances, _PART), key=lambda utterance: utterance.id)
        if not part:
            return
        path = scratch / f"{number}.jsonl"
        try:
            with path.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(utterance.to_json()) + "\n" for utterance in part)
        except OSError as error:  # a full disk, which must be told from that of the manifest
            raise OSError(error.errno, error.strerror, str(path)) from None
        yield path


def _read_part(path: Path) -> Iterator[Utterance]:
    with path.open("rb") as file:
        yield from map(parse_utterance, file)


def _unique(parts: Sequence[Path], rejects: _Rejects | None) -> Iterator[Utterance]:
    """The utterances in the order of their ids, without those whose id was there before: `rejects` get these."""
    first: Utterance | None = None
    for utterance in heapq.merge(*map(_read_part, parts), key=lambda utterance: utterance.id):
        if first is None or utterance.id != first.id:
            first = utterance
            yield utterance
        elif rejects is not None:
            detail = f"id {utterance.id!r} was already taken by {first.audio}"
            rejects.append(Reject(utterance.audio, "duplicate_id", detail))


def _left(utterances: Iterator[Utterance], owners: Owners, rejects: _Rejects) -> Iterator[Utterance]:
    """Those whose text is not left to another split; `rejects` get the others."""
    for utterance in utterances:
        if other := owners.other(utterance):
            detail = f"{utterance.text!r} is a text of {other} too, and is left to it"
            rejects.append(Reject(utterance.id, "text_in_other_split", detail))
        else:
            yield utterance
