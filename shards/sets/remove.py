"""A set without a speaker or a corpus, and the proof that nothing of them is left in it.

Sets are never changed, so this is a new one that stands by itself: what it needs of other files is copied into it.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.audio import encode_flac, is_own_flac
from shards.sample import Utterance
from shards.sets.gains import gains_file
from shards.sets.index import (
    FORMAT,
    OWN_TAR,
    Shard,
    encode_array,
    name_hash,
    parse_shard,
    read_dataset,
    read_description,
    read_object,
    read_rows,
)
from shards.sets.new_set import NewSet
from shards.sets.shard_set import ShardSet
from shards.sets.store import Store, open_store
from shards.sets.tar import TarShard
from shards.sets.tokens import stored_counts, tokens_file
from shards.sets.verify import verify

_CARRIED = ("llm", "prompt", "wording", "max_new_tokens")  # of what made the set; the rest could name who is removed
_MAX_SPEAKERS_READ = 5000
_FLAC_BYTES_PER_SAMPLE = 1.4
_SPARE = 1.1
_MAX_TOLD = 10
_CORPUS = "a corpus"
_WORDS = {  # where in the files of a new set words stand that name no speaker and no clip, whatever they are
    _CORPUS: re.compile(r"corpora\.\d+\.(corpus|0)"),
    "a licence": re.compile(r"corpora\.\d+\.(licence|1)"),
    "the prompt": re.compile(r"(job\.)?prompt"),
    "words of the prompt": re.compile(r"job\.wording\.\d+"),
    "the LLM": re.compile(r"job\.llm"),
    "a language": re.compile(r"languages\.\d+|job\.backend"),
    "a writer": re.compile(r"writers\.\d+"),
    "a version": re.compile(r"versions\..*"),
}


@dataclass(frozen=True)
class Selection:
    """Whom to remove: a speaker in every corpus, a whole corpus, or with both the speaker of that corpus alone."""

    speaker: str | None = None
    corpus: str | None = None

    def __post_init__(self) -> None:
        if self.speaker is None and self.corpus is None:
            raise ValueError("nothing to remove: say --speaker NAME, --corpus NAME, or both")

    @property
    def name(self) -> str:
        """That nobody may be called by any more: the speaker's, else the corpus's."""
        name = self.corpus if self.speaker is None else self.speaker
        assert name is not None
        return name

    def __str__(self) -> str:
        parts = [f"{kind} {name!r}" for kind, name in dataclasses.asdict(self).items() if name is not None]
        return " of ".join(parts)

    def matches(self, utterance: Utterance) -> bool:
        """Whether this utterance is to go."""
        return self.speaker in (None, utterance.speaker) and self.corpus in (None, utterance.corpus)

    def rows(self, rows: NDArray[np.void]) -> NDArray[np.bool_]:
        """The same of index rows."""
        chosen = np.ones(len(rows), bool)
        for kind, name in dataclasses.asdict(self).items():
            if name is not None:
                chosen &= rows[kind] == np.uint64(name_hash(name))
        return chosen


@dataclass(frozen=True)
class Removed:
    """The new set: clips kept, removed, and encoded anew as they were no 16 kHz mono FLAC. `proved` are sentences."""

    dataset_id: str
    kept: int
    removed: int
    reencoded: int
    proved: tuple[str, ...]


def remove(
    source: str | Path,
    out: str | Path,
    selection: Selection,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Removed:
    """Write the set `out`, which is `source` without the selection, or finish it, and look at every byte of it.

    `on_progress` gets the number of shards done and of all. Raises ValueError for an unknown speaker or corpus, if no
    clip would be left, for a damaged source, or an `out` that holds something else; OSError for a full disk, or when
    the proof fails.
    """
    store = open_store(source)
    record, description = read_dataset(store)
    shard_set = ShardSet([store], [description])
    gone = selection.rows(shard_set.rows)
    if not gone.any():
        raise _unknown(shard_set, selection)
    if gone.all():
        raise ValueError(f"{store.url}: nothing but {selection} is in this set; delete the whole set instead")
    kept_hashes = shard_set.rows["id_hash"][~gone]
    with NewSet.begin(out, {"format": FORMAT, "removed_from": description.dataset_id}) as new:
        if new.finished and set().union(*(_ids(new.store, s) for s in new.finished)) != set(kept_hashes.tolist()):
            raise ValueError(f"{new.store.url}: holds another shard set; choose another folder or remove it")
        _check_space(new.store, shard_set.rows[~gone])
        parts = []
        for number in range(len(shard_set.shards)):
            in_shard = shard_set.rows["shard"] == number
            kept = np.flatnonzero(in_shard & ~gone)
            parts.append(_part(new, shard_set, number, kept, kept - int(np.argmax(in_shard))))
            on_progress(number + 1, len(shard_set.shards))
        shards = [Shard(**part["shard"]) for part in parts if part["shard"]]
        about = _about(record, parts, len(shard_set), int(gone.sum()), description.prompt)
        finished = new.finish(shards, [], len(parts), about)
        proved = _prove(new.store, selection, shard_set.rows["id_hash"][gone], kept_hashes)
    return Removed(
        dataset_id=finished["dataset_id"],
        kept=finished["written"],
        removed=int(gone.sum()),
        reencoded=sum(part["reencoded"] for part in parts),
        proved=tuple(proved),
    )


def _unknown(shard_set: ShardSet, selection: Selection) -> ValueError:
    """Names what is not there, and what is and looks like it."""
    known: dict[str, list[str]] = {"corpus": sorted(shard_set.corpora)}
    if selection.corpus is None or selection.corpus in shard_set.corpora:
        _, rows = np.unique(shard_set.rows["speaker"], return_index=True)
        speakers = {shard_set.record(int(row))[0].speaker for row in rows[:_MAX_SPEAKERS_READ]}
        known = {"speaker": sorted(speaker for speaker in speakers if speaker is not None)}
    ((kind, names),) = known.items()
    wanted = selection.speaker if kind == "speaker" else selection.corpus
    assert wanted is not None
    if wanted in names:
        return ValueError(f"{shard_set.url}: holds no clip of {selection}")
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5) or names[:_MAX_TOLD]
    there = f"; there are for example {', '.join(map(repr, near))}" if near else f"; no clip names a {kind}"
    return ValueError(f"{shard_set.url}: no {kind} {wanted!r}{there}")


def _check_space(store: Store, rows: NDArray[np.void]) -> None:
    own = rows["audio_file"] == OWN_TAR
    audio_bytes = np.where(own, rows["audio_size"], rows["num_samples"] * _FLAC_BYTES_PER_SAMPLE).sum()
    needed, free = _SPARE * float(audio_bytes + rows["json_size"].sum()), store.free_bytes()
    if free is not None and free < needed:
        wanted = f"about {needed / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB are free"
        raise OSError(f"{store.url}: {wanted}; make room or choose a folder on another disk")


def _part(
    new: NewSet, shard_set: ShardSet, number: int, kept: NDArray[np.int64], rows_in_shard: NDArray[np.int64]
) -> dict[str, Any]:
    """What is kept of a shard becomes a shard; returns what `finish` has to know, from an earlier call if there was
    one and it kept the same clips."""
    part = new.committed(number, _check_part)
    done = Shard(**part["shard"]) if part and part["shard"] else None
    if part is not None and _ids(new.store, done) == set(shard_set.rows["id_hash"][kept].tolist()):
        return part
    licences: Counter[tuple[str, str | None]] = Counter()
    reencoded = 0

    def fill(tar: TarShard) -> None:
        nonlocal reencoded
        for row in kept.tolist():
            utterance, continuation = shard_set.record(row)
            audio = shard_set.audio_bytes(row)
            if shard_set.rows["audio_file"][row] != OWN_TAR and not is_own_flac(audio):
                audio = encode_flac(shard_set.audio(row))
                reencoded += 1
            licences[utterance.corpus, utterance.licence] += 1
            teacher = shard_set.teacher_bytes(row)
            tar.add(utterance, continuation, audio, int(shard_set.rows["num_samples"][row]), teacher)

    shard = new.write_shard(number, fill)
    if shard is not None:
        _copy_tokens(shard_set.shards[number], rows_in_shard, new.store, shard)
    part = {
        "shard": None if shard is None else dataclasses.asdict(shard),
        "reencoded": reencoded,
        "corpora": [[corpus, licence, clips] for (corpus, licence), clips in licences.items()],
    }
    new.commit(number, part)
    return part


def _check_part(part: dict[str, Any]) -> None:
    """Raises KeyError, TypeError or ValueError for what `_part` cannot have returned."""
    rows = 0 if part["shard"] is None else parse_shard(part["shard"]).rows
    for corpus, licence, clips in part["corpora"]:
        if type(corpus) is not str or not isinstance(licence, str | None) or type(clips) is not int:
            raise ValueError("it names no corpora")
    if type(part["reencoded"]) is not int or sum(clips for _, _, clips in part["corpora"]) != rows:
        raise ValueError("its numbers do not add up")


def _ids(store: Store, shard: Shard | None) -> set[int]:
    """The id hashes of a shard that was written; none at all when it is damaged, so that it is written again."""
    try:
        if shard is None or store.size(shard.tar) != shard.bytes:
            return set()
        return set(read_rows(store, (), shard).rows["id_hash"].tolist())
    except (OSError, ValueError):
        return set()


def _copy_tokens(source: tuple[Store, Shard], rows: NDArray[np.int64], out: Store, shard: Shard) -> None:
    store, before = source
    for fingerprint in store.folders("tokens"):
        counts = stored_counts(store, before, fingerprint)
        if counts is None:
            continue  # they are counted again when they are needed
        out.write(tokens_file(fingerprint, shard.name), encode_array(counts[rows]))


def _about(
    record: dict[str, Any], parts: list[dict[str, Any]], inputs: int, removed: int, prompt: str | None
) -> dict[str, Any]:
    """The rest of dataset.json, of which nothing comes from a removed clip but their number."""
    licences: Counter[tuple[str, str | None]] = Counter()
    for part in parts:
        for corpus, licence, clips in part["corpora"]:
            licences[corpus, licence] += clips
    job = record.get("job")
    return {
        "inputs": inputs,
        "rejected": {"removed": removed},
        "duplicates": 0,
        "prompt": prompt,
        "teacher": record.get("teacher"),
        "writers": record.get("writers", []),
        "languages": record.get("languages", ["en"]),
        "corpora": [
            {"corpus": c, "licence": licence, "clips": n} for (c, licence), n in sorted(licences.items(), key=str)
        ],
        "versions": record.get("versions", {}),
        "removed_from": record["dataset_id"],
        "job": {name: job[name] for name in _CARRIED if name in job} if isinstance(job, dict) else {},
    }


def _prove(store: Store, selection: Selection, gone: NDArray[np.uint64], kept: NDArray[np.uint64]) -> list[str]:
    """What was found by reading the new set again, every byte of it. Raises OSError when something is left."""
    gone_ids, found, damages = set(gone.tolist()), set[int](), list[str]()

    def inspect(utterance: Utterance) -> str | None:
        id_hash = name_hash(utterance.id)
        found.add(id_hash)
        return "is still there" if selection.matches(utterance) or id_hash in gone_ids else None

    verified = verify(store.url, damages.append, inspect=inspect)
    if found != set(kept.tolist()):
        damages.append(f"{store.url}: {len(found)} clips, {len(kept)} were to be kept")
    names, expected = set(_walk(store, "")), _expected(store)
    damages += [f"{store.url}/{name}: belongs to no set" for name in sorted(names - expected)]
    texts = sorted(name for name in names & expected if name.endswith(".json"))
    as_words = set[str]()
    for name in texts:
        try:
            named, as_word = _named(read_object(store, name, "delete it"), selection, gone_ids)
        except ValueError as error:
            damages.append(str(error))
            continue
        as_words |= as_word
        if named:
            damages.append(f"{store.url}/{name}: names {selection}, or a removed clip")
    if damages:
        told = "\n".join(damages[:_MAX_TOLD])
        raise OSError(f"{told}\n{store.url}: not proved to be without {selection}; delete it and try again")
    return [
        f"each of its {verified.rows} records was read back, and none is of {selection}",
        f"none of the {len(gone_ids)} removed ids is in a record, an index or the name of a tar's member",
        f"each byte of its {verified.shards} tars is in a file of a clip that was kept, in a header or zero, and is "
        "what the hash in the tar's name says",
        f"all {len(names)} files in it belong to it, and the {len(texts)} that hold words name none of those removed"
        + "".join(f"; {selection.name!r} stands there as {kind}" for kind in sorted(as_words)),
    ]


def _expected(store: Store) -> set[str]:
    """Every file that may be in the folder."""
    description = read_description(store)
    names = {"dataset.json", "job.json", ".lock"}
    names |= {name for shard in description.shards for name in (shard.tar, shard.index)}
    names |= {f"commits/{name}" for name in store.names("commits")}  # finish left those of this set
    names |= {gains_file(shard.name) for shard in description.shards}
    for fingerprint in store.folders("tokens"):
        names |= {tokens_file(fingerprint, shard.name) for shard in description.shards}
    return names


def _walk(store: Store, folder: str) -> Iterator[str]:
    below = f"{folder}/" if folder else ""
    yield from (below + name for name in store.names(folder))
    for name in store.folders(folder):
        yield from _walk(store, below + name)


def _named(record: dict[str, Any], selection: Selection, gone_ids: set[int]) -> tuple[bool, set[str]]:
    """Whether a file of the new set names who was removed or a removed clip, and as what else the same word is there:
    a speaker may be called as a corpus that stays, or as the prompt."""
    hashes = gone_ids | {name_hash(selection.name)}
    named, as_words = False, set[str]()
    for place, text in _strings(record):
        kind = next((kind for kind, places in _WORDS.items() if places.fullmatch(place)), None)
        same = text == selection.name
        if kind is None:
            named |= name_hash(text) in hashes
        elif kind == _CORPUS and selection.speaker is None:
            named |= same
        elif same:
            as_words.add(kind)
    return named, as_words


def _strings(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a JSON value with its place (`corpora.0.licence`), but not the names of fields."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _strings(inner, f"{place}.{key}" if place else str(key))
