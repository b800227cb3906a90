from __future__ import annotations

import resource
import tempfile
from pathlib import Path

import pytest

from shards.corpora import build, emodb, jsonl
from shards.corpora.build import build_manifest
from shards.manifest import read_manifest
from shards.sample import Utterance
from tests.shards.corpora.miniatures import miniature, tone


def test_a_layout_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds a folder 'wav'"):
        list(emodb.read(tmp_path))


def test_the_authors_own_lines_are_enough(tmp_path: Path) -> None:
    tone(tmp_path / "wav" / "a.b.flac")
    (tmp_path / "train.jsonl").write_text('{"audio": "wav/a.b.flac", "text": "I saw it.", "emotion": "sad"}')
    audio = str(tmp_path / "wav" / "a.b.flac")
    assert list(jsonl.read(tmp_path / "train.jsonl")) == [
        Utterance(id="train/wav/a.b", audio=audio, text="I saw it.", corpus="train", emotion="sad")
    ]


def test_an_id_counts_once_and_a_corpus_of_nothing_is_refused(tmp_path: Path) -> None:
    tone(tmp_path / "a.wav")
    corpus = tmp_path / "c.jsonl"
    corpus.write_text('{"audio": "a.wav", "text": "x"}\n' * 3)
    counts = build_manifest("jsonl", corpus, tmp_path / "m.jsonl")
    assert (counts.read, counts.kept, dict(counts.dropped)) == (3, 1, {"duplicate_id": 2})
    corpus.write_text('{"audio": "gone.wav", "text": "x"}\n' * 2)
    with pytest.raises(ValueError, match=r"no utterance could be kept \(2 missing_audio\)"):
        build_manifest("jsonl", corpus, tmp_path / "n.jsonl")
    assert not (tmp_path / "n.jsonl").exists()


def test_a_corpus_larger_than_memory_is_sorted_and_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tone(tmp_path / "a.wav")
    names = [f"{number * 7 % 11:02d}" for number in range(11)]
    lines = [f'{{"id": "{name}", "audio": "a.wav", "text": "{i}"}}\n' for i, name in enumerate([*names, "03", "05"])]
    (tmp_path / "c.jsonl").write_text("".join(lines))
    build_manifest("jsonl", tmp_path / "c.jsonl", tmp_path / "whole.jsonl")
    monkeypatch.setattr(build, "_PART", 2)
    counts = build_manifest("jsonl", tmp_path / "c.jsonl", tmp_path / "parts.jsonl")
    assert (counts.kept, dict(counts.dropped)) == (11, {"duplicate_id": 2})
    assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    found = read_manifest(tmp_path / "parts.jsonl")
    assert [utterance.id for utterance in found] == sorted(names)
    assert [names[int(utterance.text)] for utterance in found] == sorted(names)  # the first line with the id counts


def test_a_full_disk_for_what_was_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tone(tmp_path / "a.wav")
    (tmp_path / "c.jsonl").write_text('{"audio": "a.wav", "text": "%s"}\n' % ("word " * 5000))
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"{tmp_path}/scratch/blsp-manifest-\w+/0.jsonl"):
            build_manifest("jsonl", tmp_path / "c.jsonl", tmp_path / "m.jsonl")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_an_unknown_corpus_or_subset_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no reader 'emobd'; the nearest is emodb; there are .*jsonl"):
        build_manifest("emobd", tmp_path, tmp_path / "m.jsonl")
    with pytest.raises(ValueError, match="emodb has no subsets; leave --subset M out"):
        build_manifest("emodb", tmp_path, tmp_path / "m.jsonl", subset="M")


def test_what_is_read_is_never_overwritten(tmp_path: Path) -> None:
    tone(tmp_path / "audios" / "00003-en-US-JasonNeural-sad.wav")
    own, same = tmp_path / "own.jsonl", tmp_path / "own.rejects.jsonl"
    own.write_text('{"audio": "audios/00003-en-US-JasonNeural-sad.wav", "text": "x", "emotion": "sad"}\n')
    same.symlink_to(own)
    for corpus, root, out in (("jsonl", own, own), ("jsonl", same, own), ("speechalpaca", tmp_path, own)):
        with pytest.raises(ValueError, match="give the manifest another name"):
            build_manifest(corpus, root, out)
    same.unlink()
    assert own.read_text().startswith('{"audio": "audios')
    for _ in range(2):  # a manifest that is there is made again, also among what it is made from
        assert build_manifest("jsonl", own, tmp_path / "m.jsonl").kept == 1
    assert build_manifest("emodb", miniature("emodb").make(tmp_path / "c").root, tmp_path / "c" / "m.jsonl").kept == 5
    assert build_manifest("emodb", tmp_path / "c", tmp_path / "c" / "m.jsonl").kept == 5


def test_a_transcript_without_a_word_is_none(tmp_path: Path) -> None:
    tone(tmp_path / "a.wav")
    texts = ("...", "?!", "—", "", "啊", "3", "oh")
    lines = [f'{{"id": "{number}", "audio": "a.wav", "text": "{text}"}}\n' for number, text in enumerate(texts)]
    (tmp_path / "c.jsonl").write_text("".join(lines), "utf-8")
    counts = build_manifest("jsonl", tmp_path / "c.jsonl", tmp_path / "m.jsonl")
    assert dict(counts.dropped) == {"no_text": 4}
    assert [utterance.text for utterance in read_manifest(tmp_path / "m.jsonl")] == ["啊", "3", "oh"]
