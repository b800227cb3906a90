"""What a finished shard set holds, as values that a report can show: its indexes, and a sample of its records."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.sample import EMOTIONS, Continuation, Utterance
from shards.sets.gains import stored_gains
from shards.sets.index import read_dataset
from shards.sets.shard_set import CorruptSample, ShardSet
from shards.sets.store import is_url, open_store
from shards.sets.tokens import stored_counts
from shards.targets.filters import Filters
from shards.targets.leakage import Guess, guess_emotion
from shards.targets.rejects import RejectExamples, example_rejects
from shards.targets.repeats import units

MOST_RECORDS = 20_000
MOST_IN_A_BUCKET = 4_000  # each is a request
_READ_AT_ONCE = 500
_SEED = 1
_PUNCTUATION = re.compile(r"[.,!?;:。，！？；：、]")
_CASED = re.compile(r"[A-Za-zÀ-ÖØ-öø-ÿΑ-ωА-яЁё]")


@dataclass
class Style:
    """How the transcripts of a corpus look: shares of those with a capital and with punctuation; `cased` of those in a
    script that has capitals."""

    name: str
    texts: int = 0
    cased: int = 0
    capitals: int = 0
    punctuation: int = 0

    def add(self, text: str) -> None:
        """One more transcript."""
        self.texts += 1
        self.cased += bool(_CASED.search(text))
        self.capitals += text != text.lower()
        self.punctuation += bool(_PUNCTUATION.search(text))

    @property
    def share_of_capitals(self) -> float | None:
        """None in scripts without."""
        return self.capitals / self.cased if self.cased else None

    @property
    def share_of_punctuation(self) -> float:
        return self.punctuation / self.texts if self.texts else 0.0


@dataclass(frozen=True)
class Record:
    """A record that was read, and its row."""

    row: int
    utterance: Utterance
    continuation: Continuation | None


@dataclass(frozen=True, kw_only=True)
class Survey:
    """`about` is dataset.json; `rows` the whole index; `gains` and `tokens` of all rows where they lie beside it.

    `records` is a sample, all else here was counted in it: `flaws` what filters find in it now, `cut` the continuations
    that the token limit cut and all, by emotion.
    """

    url: str
    about: dict[str, Any]
    shard_set: ShardSet
    gains: NDArray[np.float32] | None
    tokens: NDArray[np.uint32] | None
    rejects: RejectExamples
    records: list[Record]
    unreadable: int
    styles: list[Style]
    languages: dict[str, int]
    flaws: dict[str, int] = field(default_factory=dict)
    cut: dict[str, tuple[int, int]] = field(default_factory=dict)
    repeated_texts: list[tuple[str, int]] = field(default_factory=list)
    repeated_share: float = 0.0
    leakage: dict[str, Guess] = field(default_factory=dict)


def survey(root: str, beside: Sequence[str] = ()) -> Survey:
    """Of the set in `root`; styles also of those in `beside`, which are read with it in a training or before it.

    Raises ValueError, with the remedy, for a root that is unfinished, damaged or no shard set.
    """
    store = open_store(root)
    about, _ = read_dataset(store)
    shard_set = ShardSet.open(root)
    records, unreadable = sample_records(shard_set, root)
    others = [(name, sample_records(ShardSet.open(name), name)[0]) for name in beside]
    texts = Counter(" ".join(units(record.utterance.text)) for record in records)
    again = [(text, number) for text, number in texts.most_common() if number > 1]
    return Survey(
        url=root,
        about=about,
        shard_set=shard_set,
        gains=_gains(shard_set, records),
        tokens=_tokens(shard_set),
        rejects=example_rejects(store),
        records=records,
        unreadable=unreadable,
        styles=[*_styles(records), *(style for name, read in others for style in _styles(read, f"{name}: "))],
        languages=dict(Counter(record.utterance.language or "unknown" for record in records).most_common()),
        flaws=_flaws(records),
        cut=_cut(records),
        repeated_texts=again[:10],
        repeated_share=sum(number for _, number in again) / len(records) if records else 0.0,
        leakage=_leakage(records),
    )


def sample_records(shard_set: ShardSet, root: str) -> tuple[list[Record], int]:
    """Records drawn by lot, in the order of rows, and how many of those could not be read."""
    most = MOST_IN_A_BUCKET if is_url(root) else MOST_RECORDS
    rows = np.sort(np.random.default_rng(_SEED).permutation(len(shard_set))[:most]).tolist()
    records, unreadable = [], 0
    for start in range(0, len(rows), _READ_AT_ONCE):
        some = rows[start : start + _READ_AT_ONCE]
        try:
            found = [Record(row, *both) for row, both in zip(some, shard_set.records(some), strict=True)]
        except CorruptSample:
            found = list(_one_by_one(shard_set, some))
        records += found
        unreadable += len(some) - len(found)
    return records, unreadable


def _one_by_one(shard_set: ShardSet, rows: Sequence[int]) -> Iterable[Record]:
    for row in rows:
        try:
            yield Record(row, *shard_set.record(row))
        except CorruptSample:
            continue


def _gains(shard_set: ShardSet, records: Sequence[Record]) -> NDArray[np.float32] | None:
    """Of the files beside the index; where one is missing, of the sampled records alone."""
    found = np.full(len(shard_set), np.nan, np.float32)
    for record in records:
        if record.continuation is not None and record.continuation.gain is not None:
            found[record.row] = record.continuation.gain
    first = 0
    for store, shard in shard_set.shards:
        gains = stored_gains(store, shard.name, shard.rows)
        if gains is not None:
            found[first : first + shard.rows] = gains
        first += shard.rows
    return None if np.isnan(found).all() else found


def _tokens(shard_set: ShardSet) -> NDArray[np.uint32] | None:
    """Response tokens under the first tokenizer that has counted them all."""
    stores = {id(store): store for store, _ in shard_set.shards}
    for fingerprint in sorted({name for store in stores.values() for name in store.folders("tokens")}):
        counts = [stored_counts(store, shard, fingerprint) for store, shard in shard_set.shards]
        parts = [part["num_response_tokens"] for part in counts if part is not None]
        if len(parts) == len(counts) and parts:
            return np.concatenate(parts)
    return None


def _styles(records: Iterable[Record], before: str = "") -> list[Style]:
    styles: dict[str, Style] = {}
    for record in records:
        name = before + record.utterance.corpus
        styles.setdefault(name, Style(name)).add(record.utterance.text)
    return [styles[name] for name in sorted(styles)]


def _flaws(records: Iterable[Record]) -> dict[str, int]:
    """What each filter would find, whichever were in force when the set was made."""
    found: Counter[str] = Counter()
    for record in records:
        if record.continuation is not None:
            verdict = Filters(drop=()).judge(record.utterance, record.continuation)
            found.update(verdict.noted)
            found["empty"] += verdict.reason is not None
    return {name: number for name, number in found.most_common() if number}


def _cut(records: Iterable[Record]) -> dict[str, tuple[int, int]]:
    cut, every = Counter[str](), Counter[str]()
    for record in records:
        if record.continuation is not None:
            emotion = record.utterance.emotion or "none"
            every[emotion] += 1
            cut[emotion] += not record.continuation.finished
    return {name: (cut[name], every[name]) for name in (*EMOTIONS, "none") if every[name]}


def _leakage(records: Iterable[Record]) -> dict[str, Guess]:
    """From the transcripts and from the continuations; apart by speakers where they are known, else by texts."""
    columns: dict[str, list[list[str]]] = defaultdict(lambda: [[], [], []])
    for record in records:
        said = record.utterance
        if said.emotion is None:
            continue
        group = f"text {said.text}" if said.speaker is None else f"speaker {said.corpus} {said.speaker}"
        read = {"transcript": said.text}
        if record.continuation is not None:
            read["continuation"] = record.continuation.text
        for name, text in read.items():
            for column, value in zip(columns[name], (text, said.emotion, group), strict=True):
                column.append(value)
    guesses = {name: guess_emotion(*column) for name, column in columns.items()}
    return {name: guess for name, guess in guesses.items() if guess is not None}
