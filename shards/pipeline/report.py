"""What `blsp shard` says of the set that it made: report.json for programs, report.md for people."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.audio import SAMPLE_RATE
from shards.pipeline.job import Speed, Summary
from shards.pipeline.tasks import Commit
from shards.sample import EMOTIONS
from shards.sets.gains import stored_gains, summarised
from shards.sets.index import decode_index
from shards.sets.store import Store
from shards.sets.tokens import decode_counts, tokens_file

_DURATION_EDGES_S = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30)
_TOKEN_EDGES = (0, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512)
_BAR_CHARACTERS = 30


class _Totals:
    """What the index and the token counts of all shards add up to; 16 bytes a clip stay in memory."""

    def __init__(self) -> None:
        self.durations = np.zeros(len(_DURATION_EDGES_S), np.int64)
        self.tokens = np.zeros(len(_TOKEN_EDGES), np.int64)
        self.emotions: Counter[str] = Counter()
        self.speakers: Counter[int] = Counter()
        self.finish: dict[str, list[int]] = {}
        self.noted: Counter[str] = Counter()
        self._sounds: list[NDArray[np.uint64]] = []
        self._gains: list[tuple[NDArray[np.uint64], NDArray[np.int8], NDArray[np.float32]]] = []

    def add(self, rows: NDArray[np.void], tokens: NDArray[np.void] | None, gains: NDArray[np.float32] | None) -> None:
        """The INDEX_ROW rows of one shard, and its TOKEN_COUNTS and emotion gains where there are some."""
        self.durations += _counted(rows["num_samples"] / SAMPLE_RATE, _DURATION_EDGES_S)
        if tokens is not None:
            self.tokens += _counted(tokens["num_response_tokens"], _TOKEN_EDGES)
        labels, numbers = np.unique(rows["emotion"], return_counts=True)
        for label, number in zip(labels.tolist(), numbers.tolist(), strict=True):
            self.emotions["none" if label < 0 else EMOTIONS[label]] += number
        speakers, numbers = np.unique(rows["speaker"], return_counts=True)
        self.speakers.update(dict(zip(speakers.tolist(), numbers.tolist(), strict=True)))
        if gains is not None:
            self._gains.append((rows["corpus"], rows["emotion"], gains))
        self._sounds.append(rows["num_samples"].astype(np.uint64) << np.uint64(32) | rows["audio_crc32"])

    def emotion_gains(self, corpora: Iterable[str]) -> list[dict[str, Any]]:
        """What the gains of each corpus and emotion come to; empty where none were measured."""
        if not self._gains:
            return []
        corpus, emotion, gains = (np.concatenate(part) for part in zip(*self._gains, strict=True))
        return summarised(corpora, corpus, emotion, gains)

    def identical(self) -> dict[str, int]:
        """Clips whose audio another clip has too, by length and checksum."""
        _, numbers = np.unique(np.concatenate(self._sounds), return_counts=True)
        repeated = numbers[numbers > 1]
        return {"groups": len(repeated), "clips": int(repeated.sum())}


def _counted(values: NDArray[Any], edges: Sequence[int]) -> NDArray[np.int64]:
    """Numbers of values from each edge up to the next; the last has no end."""
    places = np.searchsorted(edges, values, side="right") - 1
    return np.bincount(places, minlength=len(edges)).astype(np.int64)


def write_report(
    store: Store, summary: Summary, corpora: Sequence[dict[str, Any]], commits: Iterable[Commit], speed: Speed
) -> None:
    """report.json and report.md of a set whose tasks are all committed."""
    totals = _Totals()
    for commit in commits:
        totals.noted.update(commit.noted)
        for emotion, (finished, cut) in commit.finish.items():
            before = totals.finish.get(emotion, [0, 0])
            totals.finish[emotion] = [before[0] + finished, before[1] + cut]
        if commit.name is not None:
            index = decode_index(store.read(f"index/{commit.name}.npy"), commit.rows)
            tokens = None
            if commit.tokens is not None:
                tokens = decode_counts(store.read(tokens_file(commit.tokens, commit.name)), commit.rows)
            gains = stored_gains(store, commit.name, commit.rows) if commit.gains else None
            totals.add(index.rows, tokens, gains)
    report = _report(summary, corpora, totals, speed)
    store.write("report.json", json.dumps(report, indent=1, ensure_ascii=False).encode())
    store.write("report.md", _markdown(report).encode())


def _report(summary: Summary, corpora: Sequence[dict[str, Any]], totals: _Totals, speed: Speed) -> dict[str, Any]:
    clips_of = sorted((number for speaker, number in totals.speakers.items() if speaker), reverse=True)
    return {
        **dataclasses.asdict(summary),
        "last_run": {
            "clips": speed.clips, "seconds": round(speed.seconds, 1),
            "clips_per_s": round(speed.clips_per_s, 2), "hours_per_s": round(speed.hours_per_s, 5),
        },
        "noted": dict(totals.noted.most_common()),
        "corpora": corpora,
        "emotions": dict(totals.emotions.most_common()),
        "speakers": {
            "number": len(clips_of), "most_clips": max(clips_of, default=0),
            "median_clips": float(np.median(clips_of)) if clips_of else 0.0,
            "clips_without_speaker": totals.speakers[0],
        },
        "finish": {
            emotion: {"finished": finished, "cut": cut, "cut_share": round(cut / (finished + cut), 4)}
            for emotion, (finished, cut) in sorted(totals.finish.items())
        },
        "duration_s": _histogram(totals.durations, _DURATION_EDGES_S),
        "response_tokens": _histogram(totals.tokens, _TOKEN_EDGES),
        "emotion_gain": totals.emotion_gains(sorted({row["corpus"] for row in corpora})),
        "identical_audio": totals.identical(),
    }  # fmt: skip


def _histogram(numbers: NDArray[np.int64], edges: Sequence[int]) -> list[dict[str, int]]:
    """Without the empty bins at the end."""
    last = int(np.flatnonzero(numbers)[-1]) + 1 if numbers.any() else 0
    return [{"from": edge, "clips": int(number)} for edge, number in zip(edges[:last], numbers[:last], strict=True)]


def _markdown(report: dict[str, Any]) -> str:
    speakers, twice = report["speakers"], report["identical_audio"]
    rejected = sum(report["rejected"].values())
    last = report["last_run"]
    lines = [
        f"# Shard set {report['dataset_id']}",
        "",
        f"{report['inputs']} clips came in: {report['written']} are written ({report['hours']:.2f} h), {rejected} are",
        f"rejected and {report['duplicates']} repeat the id of another. The last run finished {last['clips']} of them,",
        f"at {last['clips_per_s']:g} clips/s and {last['hours_per_s']:g} hours of audio per second.",
        "",
        f"{speakers['number']} speakers have {speakers['median_clips']:g} clips each in the median and at most",
        f"{speakers['most_clips']}; {speakers['clips_without_speaker']} clips name no speaker. {twice['clips']} clips",
        f"in {twice['groups']} groups sound the same, bit by bit, under different ids.",
        "",
    ]
    lines += _table("Rejected", "reason", report["rejected"].items())
    lines += _table("Found by filters, and left in", "what", report["noted"].items())
    lines += _table(
        "Corpora", "corpus, licence", [(f"{c['corpus']}, {c['licence']}", c["clips"]) for c in report["corpora"]]
    )
    lines += _table("Emotions", "emotion", report["emotions"].items())
    cut = [(f"{emotion} ({row['cut_share']:.0%})", row["cut"]) for emotion, row in report["finish"].items()]
    lines += _table("Continuations cut by the token limit", "emotion, share of its clips", cut)
    lines += _gain_table(report["emotion_gain"])
    for title, unit, key in (("Durations", "s, from", "duration_s"), ("Responses", "tokens, from", "response_tokens")):
        lines += _table(title, unit, [(f"{row['from']}", row["clips"]) for row in report[key]])
    return "\n".join(lines)


def _gain_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    head = ["## Emotion gain, nats per token", "", "| corpus, emotion | clips | mean | 10 % | median | 90 % |"]
    cells = [
        f"| {row['corpus'].replace('|', '¦')}, {row['emotion']} | {row['clips']} | {row['mean']:z.3f} | "
        f"{row['p10']:z.3f} | {row['median']:z.3f} | {row['p90']:z.3f} |"
        for row in rows
    ]
    return [*head, "|---|---:|---:|---:|---:|---:|", *cells, ""]


def _table(title: str, unit: str, rows: Iterable[tuple[str, int]]) -> list[str]:
    rows = list(rows)
    if not rows:
        return []
    most = max(number for _, number in rows) or 1
    head = [f"## {title}", "", f"| {unit} | clips | |", "|---|---:|---|"]
    cell = [(name.replace("|", "\\|"), number, "█" * round(_BAR_CHARACTERS * number / most)) for name, number in rows]
    return [*head, *(f"| {name} | {number} | {bar} |" for name, number, bar in cell), ""]
