"""What holds of every reader, clean and with each defect that its corpus really has."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from shards.audio import SAMPLE_RATE, load_audio
from shards.corpora.build import CORPORA, ManifestCounts, build_manifest
from shards.manifest import read_manifest
from tests.shards.corpora.miniatures import Made, all_defects, miniature, names

# The makers' own splits have the same voices in each, which docs/corpora.md says.
SPLIT_BY_CLIP = {"esd", "meld", "resd"}


def built(name: str, made: Made, out: Path) -> ManifestCounts:
    """The manifest of a miniature, which is what it should be; and each reject has a place and a reason."""
    counts = build_manifest(name, made.root, out, subset=made.subset)
    assert {utterance.id for utterance in read_manifest(out)} == made.kept
    rejects = [json.loads(line) for line in out.with_suffix(".rejects.jsonl").read_text().splitlines()]
    assert Counter(reject["reason"] for reject in rejects) == counts.dropped == made.dropped
    assert all(reject["source"] and reject["detail"] for reject in rejects)
    assert counts.read == counts.kept + len(rejects) == len(made.kept) + made.dropped.total()
    return counts


def test_every_corpus_has_a_miniature() -> None:
    assert names() == sorted(CORPORA)


@pytest.mark.parametrize("name", names())
def test_a_clean_corpus_is_kept_whole(name: str, tmp_path: Path) -> None:
    made = miniature(name).make(tmp_path / "corpus")
    built(name, made, tmp_path / "m.jsonl")
    for utterance in read_manifest(tmp_path / "m.jsonl"):
        assert Path(utterance.audio).is_file()
        assert utterance.text == utterance.text.lower()
        assert not set("<>[]") & set(utterance.text)
        if CORPORA[name].licence:
            assert utterance.licence == CORPORA[name].licence
            assert utterance.language
            assert utterance.corpus == name


@pytest.mark.parametrize("name", names())
def test_what_a_clean_corpus_has_can_be_heard(name: str, tmp_path: Path) -> None:
    made = miniature(name).make(tmp_path / "corpus")
    build_manifest(name, made.root, tmp_path / "m.jsonl", subset=made.subset)
    for utterance in read_manifest(tmp_path / "m.jsonl"):
        for path, start_s, duration_s in utterance.spans:
            assert len(load_audio(Path(path), start_s, duration_s)) >= 0.1 * SAMPLE_RATE


@pytest.mark.parametrize(("name", "defect"), all_defects())
def test_a_defect_costs_what_it_touches_and_no_more(name: str, defect: str, tmp_path: Path) -> None:
    built(name, miniature(name).make(tmp_path / "corpus", defect), tmp_path / "m.jsonl")


@pytest.mark.parametrize("name", names())
def test_folders_may_be_links_to_other_disks_and_macos_may_have_been_there(name: str, tmp_path: Path) -> None:
    made = miniature(name).make(tmp_path / "corpus")
    there = [*(tmp_path / "corpus").rglob("*")]
    for path in (path for path in there if path.is_file()):
        path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ")
        path.with_name(".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1")
    below = sorted((path for path in there if path.is_dir() and path != made.root), reverse=True)
    for number, folder in enumerate(below):
        other = tmp_path / f"disk{number}" / folder.name
        other.parent.mkdir()
        shutil.move(folder, other)
        folder.symlink_to(other)
    built(name, made, tmp_path / "m.jsonl")


@pytest.mark.parametrize("name", ["mead", "mer2023"])
def test_a_link_that_leads_back_is_not_followed_forever(name: str, tmp_path: Path) -> None:
    made = miniature(name).make(tmp_path / "corpus")
    for folder in [made.root, *(path for path in made.root.rglob("*") if path.is_dir())]:
        (folder / "zz").symlink_to(made.root)
    built(name, made, tmp_path / "m.jsonl")


@pytest.mark.parametrize("name", [name for name in names() if name not in SPLIT_BY_CLIP])
def test_splits_share_no_speaker(name: str, tmp_path: Path) -> None:
    made = miniature(name).make(tmp_path / "corpus")
    build_manifest(name, made.root, tmp_path / "m.jsonl", subset=made.subset)
    splits: dict[str, set[str]] = {}
    for utterance in read_manifest(tmp_path / "m.jsonl"):
        if utterance.speaker is not None:
            splits.setdefault(utterance.speaker, set()).add(utterance.split)
    assert all(len(found) == 1 for found in splits.values())


@pytest.mark.parametrize("name", names())
def test_a_manifest_is_the_same_each_time(name: str, tmp_path: Path) -> None:
    made = miniature(name).make(tmp_path / "corpus")
    for out in ("a.jsonl", "b.jsonl"):
        build_manifest(name, made.root, tmp_path / out, subset=made.subset)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
