"""Clips of a shard set to be read and heard in its report: some of each emotion, best, worst and by lot."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from shards.audio import SAMPLE_RATE, encode_flac
from shards.sample import EMOTIONS
from shards.sets.shard_set import CorruptSample, ShardSet
from shards.targets.survey import Record, Survey

_BY_LOT = 2  # of each emotion
_LONGEST_S = 10
_MOST_BYTES = 3_300_000  # of FLAC on a page: 4.4 MB as text
_LONGEST_TEXT = 600
_SEED = 1


@dataclass(frozen=True)
class Example:
    """A record, why it is shown, and its gain where that is known."""

    record: Record
    why: str
    gain: float | None


def choose(survey: Survey) -> list[Example]:
    """Of each emotion, and of clips without: the highest and the lowest gain, and two by lot, none twice. Emotions take
    turns, so that where room ends all of them have some."""
    random = np.random.default_rng(_SEED)
    of_each = []
    for emotion in (*EMOTIONS, None):
        records = [record for record in survey.records if record.utterance.emotion == emotion]
        by_lot = [records[i] for i in random.permutation(len(records))[: 2 + _BY_LOT]]
        measured = sorted((r for r in records if _gain(survey, r) is not None), key=lambda r: _gain(survey, r) or 0.0)
        chosen = [(measured[-1], "highest gain"), (measured[0], "lowest gain")] if len(measured) > 1 else []
        taken = {record.row for record, _ in chosen}
        chosen += [(record, "by lot") for record in by_lot if record.row not in taken][:_BY_LOT]
        of_each.append([Example(record, why, _gain(survey, record)) for record, why in chosen])
    longest = max(map(len, of_each))
    return [examples[i] for i in range(longest) for examples in of_each if i < len(examples)]


def _gain(survey: Survey, record: Record) -> float | None:
    if survey.gains is None or np.isnan(survey.gains[record.row]):
        return None
    return float(survey.gains[record.row])


def examples(survey: Survey) -> str:
    """Their section of the page; empty for a set without clips."""
    chosen = choose(survey)
    if not chosen:
        return ""
    order = [*EMOTIONS, None]
    players = list(zip(chosen, _players(survey.shard_set, chosen), strict=True))
    players.sort(key=lambda pair: order.index(pair[0].record.utterance.emotion))
    clips = "".join(_clip(example, player) for example, player in players)
    which = "some, drawn by lot" if survey.gains is None else "the highest and the lowest gain, and two by lot"
    return f"<h2>To read and to hear</h2><p>Of each emotion {which}.</p>{clips}"


def _players(shard_set: ShardSet, chosen: Sequence[Example]) -> Iterator[str]:
    room = _MOST_BYTES
    for example in chosen:
        try:
            waveform = _own_clip(shard_set.audio(example.record.row), example.record)
        except (CorruptSample, OSError) as error:
            yield f'<p class="note">No sound: {escape(str(error)[:_LONGEST_TEXT])}</p>'
            continue
        shown = waveform[: _LONGEST_S * SAMPLE_RATE]
        flac = encode_flac(shown)
        if len(flac) > room:
            yield '<p class="note">No sound: the page would grow too large.</p>'
            continue
        room -= len(flac)
        data = base64.b64encode(flac).decode("ascii")
        cut = f'<p class="note">The first {_LONGEST_S} s.</p>' if len(shown) < len(waveform) else ""
        label = escape(example.record.utterance.text[:_LONGEST_TEXT], quote=True)
        yield f'<audio controls preload="none" aria-label="{label}" src="data:audio/flac;base64,{data}"></audio>{cut}'


def _own_clip(waveform: NDArray[np.int16], record: Record) -> NDArray[np.int16]:
    """Of a conversation the last turn, which the continuation answers."""
    return waveform[sum(record.utterance.earlier_samples) :]


def _clip(example: Example, player: str) -> str:
    said, continuation = example.record.utterance, example.record.continuation
    gain = "" if example.gain is None else f", gain {example.gain:z.3f}"
    facts = ", ".join(filter(None, (said.corpus, said.speaker, said.language)))
    lines = [("said", said.text)]
    if continuation is not None:
        lines.append(("the LLM wrote" if continuation.finished else "the LLM wrote, and was cut", continuation.text))
    listed = "".join(
        f'<li><span class="who">{who}</span><span class="said">{escape(text[:_LONGEST_TEXT])}</span>'
        '<span class="tone"></span></li>'
        for who, text in lines
    )
    return (
        f'<div class="clip"><div><h3>{said.emotion or "no emotion"}<span>, {example.why}{gain}</span></h3>{player}'
        f'<p class="words">{escape(facts)}</p></div><ul class="say">{listed}</ul></div>'
    )
