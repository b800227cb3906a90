"""Real speech: the emotion classifier on speakers of EmoDB that it never heard, beside the linear baseline.

    python tests/bench/emodb.py QUICKSTART_DIR EMODB_ROOT [--out FILE.json]

Ordinary commands only, once per fold: each speaker is held out in turn, a short stage 2 goes on from the quickstart's
stage 1 with the other speakers, and `blsp eval` asks both systems about the held-out clips. Everything is written below
QUICKSTART_DIR/emodb; a second start goes on where the first one stopped. About six minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from blsp.evaluate import metrics
from blsp.evaluate.metrics import Estimate
from blsp.evaluate.result import read_rows
from blsp.evaluate.scoring import Row
from cluster.files import write_atomically
from shards.manifest import read_manifest, write_manifest
from shards.sample import Utterance

EVAL_RECIPE = Path(__file__).with_suffix(".yaml").resolve()
LINEAR, SPEECH = "Linear on mean log-mel", "BLSP-Emo"
PASSES = 20  # over the four speakers that remain; chosen before the first run and not tuned


def folds(utterances: Sequence[Utterance]) -> Iterator[tuple[str, list[Utterance], list[Utterance]]]:
    """(speaker, clips of all others, clips of that speaker) for each speaker. Raises ValueError with fewer than two."""
    speakers = sorted({str(utterance.speaker) for utterance in utterances})
    if len(speakers) < 2:
        raise ValueError(f"speaker-disjoint folds need two speakers or more, got {', '.join(speakers) or 'none'}")
    for speaker in speakers:
        others = [dataclasses.replace(u, split="train") for u in utterances if u.speaker != speaker]
        yield speaker, others, [dataclasses.replace(u, split="test") for u in utterances if u.speaker == speaker]


def commands(fold: str) -> list[str]:
    """What is done for one fold, whose manifests train.jsonl and test.jsonl lie in the folder `fold`."""
    return [
        f"shard mini_shard_ser manifests=[{fold}/train.jsonl] out={fold}/shards",
        f"train mini_stage2 --processes 2 run={fold}/run data.shards={fold}/shards "
        "data.replay=null "
        f"optim.steps=null optim.epochs={PASSES}",
        f"eval {shlex.quote(str(EVAL_RECIPE))} manifest={fold}/test.jsonl out={fold}/evaluation "
        f"systems.0.train={fold}/train.jsonl systems.1.run={fold}/run",
    ]


def blsp(command: str, folder: Path) -> None:
    """Runs one `blsp` command in `folder`, shown as one would type it. Raises ValueError when it fails."""
    print(f"\n$ blsp {command}", flush=True)
    done = subprocess.run([sys.executable, "-m", "launcher", *shlex.split(command)], cwd=folder, check=False)
    if done.returncode:
        raise ValueError(f"blsp {command} ended with exit code {done.returncode}")


def pooled(rows: Sequence[Row]) -> dict[str, Any]:
    """Accuracies of both systems over the held-out clips of all folds, and their difference clip by clip."""
    of = {name: {row.id: row for row in rows if row.system == name} for name in (LINEAR, SPEECH)}
    ids = sorted(of[SPEECH])
    assert ids == sorted(of[LINEAR]), "both systems answer the same clips"
    truth = [of[SPEECH][clip].emotion for clip in ids]
    speakers = [str(of[SPEECH][clip].speaker) for clip in ids]
    hits = {name: [float(of[name][clip].classifier == of[name][clip].emotion) for clip in ids] for name in of}
    confusion = {name: metrics.confusion_matrix(truth, [str(of[name][clip].classifier) for clip in ids]) for name in of}
    ahead = [ours - theirs for ours, theirs in zip(hits[SPEECH], hits[LINEAR], strict=True)]

    def by_speaker(values: Sequence[float]) -> dict[str, float]:
        return {
            name: sum(value for value, speaker in zip(values, speakers, strict=True) if speaker == name)
            / speakers.count(name)
            for name in sorted(set(speakers))
        }

    def interval(values: Sequence[float]) -> dict[str, Any]:
        estimate = metrics.estimate(values, speakers)
        assert estimate is not None
        return dataclasses.asdict(estimate)

    return {
        "num_clips": len(ids),
        "num_speakers": len(set(speakers)),
        "emotions": {emotion: truth.count(emotion) for emotion in sorted(set(truth))},
        "chance": 1 / len(set(truth)),
        "majority": metrics.majority_share(truth),
        "systems": {
            name: {
                "accuracy": interval(hits[name]),
                "balanced_accuracy": metrics.balanced_accuracy(confusion[name]),
                "by_speaker": by_speaker(hits[name]),
                "confusion": confusion[name],
            }
            for name in of
        },
        "ahead": interval(ahead),
    }


def print_table(result: dict[str, Any]) -> None:
    """The pooled figures, in per cent."""
    table = Table("", "accuracy", "95 % interval", "balanced", box=None, header_style="bold")
    table.add_row("chance", f"{result['chance']:.0%}", "", "")
    table.add_row("majority class", f"{result['majority']:.0%}", "", "")
    for name, system in result["systems"].items():
        accuracy = Estimate.from_json(system["accuracy"])
        table.add_row(name, f"{accuracy.value:.0%}", _interval(accuracy), f"{system['balanced_accuracy']:.0%}")
    ahead = Estimate.from_json(result["ahead"])
    table.add_row(f"{SPEECH} ahead by", f"{ahead.value:+.0%}", _interval(ahead), "")
    console = Console()
    console.print(f"\nEmoDB: {result['num_clips']} clips, {result['num_speakers']} speakers, each held out once")
    console.print(table)


def _interval(estimate: Estimate) -> str:
    return "" if estimate.low is None or estimate.high is None else f"{estimate.low:.0%} to {estimate.high:.0%}"


def run(quickstart: Path, root: Path) -> dict[str, Any]:
    """All folds, and what they give together. Raises ValueError when a command fails or the quickstart is missing."""
    if not (quickstart / "runs/stage1/export").is_dir():
        raise ValueError(f"{quickstart}: no runs/stage1/export here; run `blsp quickstart {quickstart}` first")
    blsp(f"manifest emodb {shlex.quote(str(root.absolute()))} emodb/all.jsonl --text raw", quickstart)
    rows: list[Row] = []
    for speaker, train, test in folds(read_manifest(quickstart / "emodb/all.jsonl")):
        fold = f"emodb/fold-{speaker}"
        write_manifest(quickstart / fold / "train.jsonl", train)
        write_manifest(quickstart / fold / "test.jsonl", test)
        for command in commands(fold):
            blsp(command, quickstart)
        rows += read_rows(quickstart / fold / "evaluation")
    return pooled(rows)


def main() -> int:
    """Parses the command line. Returns the exit code: 0 also where the data is absent, which is said."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("quickstart", type=Path, metavar="QUICKSTART_DIR", help="a finished `blsp quickstart`")
    parser.add_argument("root", type=Path, metavar="EMODB_ROOT", help="the folder that holds wav/")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where the figures go too")
    arguments = parser.parse_args()
    if not (arguments.root / "wav").is_dir():
        print(f"skipped: EmoDB is not at {arguments.root} (it needs a folder wav/ with files like 03a01Fa.wav)")
        return 0
    try:
        result = run(arguments.quickstart, arguments.root)
    except ValueError as error:
        print(f"emodb: {error}", file=sys.stderr)
        return 2
    print_table(result)
    if arguments.out:
        write_atomically(arguments.out, f"{json.dumps(result, indent=1)}\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
