"""lhotse's manifests: spans, names of files, and what lhotse itself writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shards.corpora import lhotse
from shards.corpora.build import build_manifest
from shards.manifest import read_manifest
from shards.sample import Utterance
from tests.shards.corpora import miniatures

# In a process of its own: its import changes much, and takes long.
WRITES = """
from lhotse import CutSet, Recording, RecordingSet, SupervisionSegment, SupervisionSet

names = {"one": [0], "two": [0, 1]}
recordings = RecordingSet.from_recordings(Recording.from_file(f"{n}.wav", recording_id=n) for n in names)
supervisions = SupervisionSet.from_segments([
    SupervisionSegment("one-1", "one", 0.5, 0.5, 0, "Hi", "English", "x", custom={"emotion": "sad"}),
    SupervisionSegment("one-2", "one", 1.25, 0.5, 0, "Ho"),
    SupervisionSegment("two-1", "two", 0.0, 1.0, 1, "One side"),
    SupervisionSegment("two-2", "two", 0.0, 1.5, [0, 1], "Both sides"),
])
recordings.to_file("mini_recordings_dev.jsonl.gz")
supervisions.to_file("mini_supervisions_dev.jsonl.gz")
cuts = CutSet.from_manifests(recordings=recordings, supervisions=supervisions)
cuts.to_file("all_cuts_dev.jsonl")
CutSet.from_cuts([cuts[0]]).trim_to_supervisions().to_file("trimmed_cuts_dev.jsonl.gz")
CutSet.from_cuts([cuts[0].append(cuts[0])]).to_file("mixed_cuts_dev.jsonl.gz")
"""


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("librispeech_cuts_train-clean-100.jsonl.gz", ("librispeech", "train-clean-100")),
        ("commonvoice_supervisions_en_test.jsonl", ("commonvoice", "test")),
        ("cuts_valid.jsonl.gz", ("lhotse", "dev")),
        ("train_cuts.jsonl.gz", ("lhotse", "train")),
        ("latest_cuts.jsonl.gz", ("latest", "train")),
        ("wenetspeech_cuts_TEST_NET.jsonl.gz", ("wenetspeech", "test-net")),
    ],
)
def test_corpus_and_split_are_in_the_name(name: str, found: tuple[str, str]) -> None:
    assert lhotse._corpus_and_split(name) == found


def test_a_supervision_counts_from_its_cut(tmp_path: Path) -> None:
    made = miniatures.miniature("lhotse").make(tmp_path, "cuts_with_offsets")
    found = {item.id: item for item in lhotse.read(made.root) if isinstance(item, Utterance)}
    assert (found["c-1"].start_s, found["c-1"].duration_s) == (0.25, 1.0)
    assert (found["a-2"].start_s, found["a-2"].duration_s) == (0.5, 1.25)
    assert (found["a-1"].speaker, found["a-1"].language, found["a-1"].emotion) == ("speaker-a", "en", "happy")
    assert (found["a-1"].corpus, found["a-1"].split, found["b-1"].split) == ("mini", "train-clean", "test")


@pytest.mark.parametrize("name", ["mini_recordings_train.jsonl.gz", "mini_cuts.json", "gone.jsonl.gz"])
def test_a_file_that_says_nothing_is_refused(name: str, tmp_path: Path) -> None:
    if name != "gone.jsonl.gz":
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"no lhotse manifest; give a \.jsonl"):
        list(lhotse.read(tmp_path / name))
    with pytest.raises(ValueError, match="no lhotse manifest"):
        list(lhotse.read(tmp_path))


def test_supervisions_without_their_recordings_are_refused(tmp_path: Path) -> None:
    made = miniatures.miniature("lhotse").make(tmp_path, "supervisions")
    (tmp_path / "mini_recordings_train.jsonl.gz").unlink()
    with pytest.raises(ValueError, match=r"mini_recordings_train.jsonl.gz: no such file, and the supervisions"):
        list(lhotse.read(made.root))


@pytest.mark.slow
def test_what_lhotse_writes_is_read(tmp_path: Path) -> None:
    pytest.importorskip("lhotse")
    miniatures.tone(tmp_path / "one.wav", seconds=2.0)
    miniatures.tone(tmp_path / "two.wav", seconds=2.0, channels=2)
    subprocess.run([sys.executable, "-c", WRITES], cwd=tmp_path, check=True)
    expected = {"one-1": (0.5, 0.5, "hi"), "one-2": (1.25, 0.5, "ho"), "two-2": (0.0, 1.5, "both sides")}
    for name in ("all_cuts_dev.jsonl", "mini_supervisions_dev.jsonl.gz", "trimmed_cuts_dev.jsonl.gz"):
        counts = build_manifest("lhotse", tmp_path / name, tmp_path / "m.jsonl")
        found = {u.id: (u.start_s, u.duration_s, u.text) for u in read_manifest(tmp_path / "m.jsonl")}
        whole = not name.startswith("trimmed")
        assert found == (expected if whole else {k: v for k, v in expected.items() if k.startswith("one")})
        assert dict(counts.dropped) == ({"unreadable": 1} if whole else {})  # one channel of two
    with pytest.raises(ValueError, match="1 unreadable"):
        build_manifest("lhotse", tmp_path / "mixed_cuts_dev.jsonl.gz", tmp_path / "m.jsonl")
