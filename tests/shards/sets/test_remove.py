"""A removed speaker is nowhere in the new set, nothing else is lost, and whatever is left over is found."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.audio import encode_flac
from shards.prompts import ChatTemplate
from shards.sample import Continuation, Utterance
from shards.sets import remove as remove_module
from shards.sets.index import AudioFile
from shards.sets.new_set import NewSet
from shards.sets.remove import Selection, remove
from shards.sets.shard_set import CorruptSample, ShardSet
from shards.sets.store import open_store
from shards.sets.tar import TarShard
from shards.sets.tokens import token_counts
from shards.sets.verify import verify
from tests.shards.s3_server import BUCKET, ROOT, S3Server
from tests.shards.sets.made import edit, flip, make_overlay, tar_of

SPEAKERS = ("anna", "bert", "anna-lena", None)


@pytest.fixture
def source(tmp_path: Path) -> ShardSet:
    """Four shards of five clips: four speakers in turn, corpora `calls` and `talks` shard by shard."""
    random = np.random.default_rng(3)

    def fill(tar: TarShard, number: int) -> None:
        for i in range(5 * number, 5 * number + 5):
            speaker, corpus = SPEAKERS[i % 4], ("calls", "talks")[number % 2]
            name = f"{corpus}/{speaker}/{i}"
            utterance = Utterance(
                id=name, audio=f"{name}.wav", text=f"Text {i}.", corpus=corpus, speaker=speaker, licence="CC0"
            )
            said = Continuation(prompt="continue", text=f"said {i}", finished=True, writer="w")
            samples = random.integers(-500, 500, 3000 + i).astype(np.int16)
            tar.add(utterance, said, encode_flac(samples), len(samples))

    with NewSet.begin(tmp_path / "source", {"tars": ["anna.tar"]}) as new:
        shards = [new.write_shard(i, lambda tar, i=i: fill(tar, i)) for i in range(4)]  # type: ignore[misc]
        about = {
            "prompt": "continue", "writers": ["w"], "versions": {"numpy": "2"}, "job": {"llm": "q", "list": ["anna"]},
            "corpora": [{"corpus": name, "licence": "CC0", "clips": 10} for name in ("calls", "talks")],
        }  # fmt: skip
        new.finish([shard for shard in shards if shard], [], 0, about)
    return ShardSet.open(tmp_path / "source")


def everything(shard_set: ShardSet) -> dict[str, tuple[Utterance, Continuation | None, bytes]]:
    return {
        shard_set.record(row)[0].id: (*shard_set.record(row), shard_set.audio_bytes(row))
        for row in range(len(shard_set))
    }


@pytest.mark.parametrize(
    "selection", [Selection("anna"), Selection(corpus="talks"), Selection("bert", "calls"), Selection("anna-lena")]
)
def test_just_the_selection_is_gone_and_the_rest_is_byte_for_byte_as_before(
    source: ShardSet, selection: Selection, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    before = everything(source)
    wanted = {name: sample for name, sample in before.items() if not selection.matches(sample[0])}
    removed = remove(source.url, out, selection)
    after = everything(ShardSet.open(out))
    assert after == wanted
    assert 0 < len(wanted) < 20
    assert (removed.kept, removed.removed, removed.reencoded) == (len(wanted), 20 - len(wanted), 0)
    assert everything(ShardSet.open(source.url)) == before
    record = json.loads((out / "dataset.json").read_text())
    assert record["inputs"] == record["written"] + record["rejected"]["removed"] == 20
    assert sum(entry["clips"] for entry in record["corpora"]) == len(wanted)
    assert {entry["licence"] for entry in record["corpora"]} == {"CC0"}
    assert (record["writers"], record["versions"], record["job"]) == (["w"], {"numpy": "2"}, {"llm": "q"})


def test_no_byte_of_the_new_folder_holds_the_name_or_an_id(source: ShardSet, tmp_path: Path) -> None:
    """The strictest reading, which holds here as no other name contains `bert`."""
    removed = remove(source.url, tmp_path / "out", Selection("bert"))
    hashes = source.rows["id_hash"][Selection("bert").rows(source.rows)]
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) == 4 + 4 + 4 + 3
    for path in files:
        data = path.read_bytes()
        assert b"bert" not in data
        assert not any(value.tobytes() in data or f"{value:016x}".encode() in data for value in hashes)
    assert len(removed.proved) == 4
    assert "each of its 15 records was read back, and none is of speaker 'bert'" in removed.proved


def test_token_counts_go_along(source: ShardSet, template: ChatTemplate, tmp_path: Path) -> None:
    token_counts(source, template)
    remove(source.url, tmp_path / "out", Selection("anna"))
    out = ShardSet.open(tmp_path / "out")
    folder = tmp_path / "out" / "tokens" / template.fingerprint
    kept = np.concatenate([np.load(path) for path in sorted(folder.iterdir())])
    for path in folder.iterdir():
        path.unlink()
    assert np.array_equal(token_counts(out, template), kept)


def test_names_that_are_not_there_are_answered_with_those_that_look_like_it(source: ShardSet, tmp_path: Path) -> None:
    for selection, answer in {
        Selection("ana"): "no speaker 'ana'; there are for example 'anna'",
        Selection(corpus="talk"): "no corpus 'talk'; there are for example 'talks'",
        Selection("anna", "call"): "no corpus 'call'; there are for example 'calls'",
        Selection("zzz"): "no speaker 'zzz'; there are for example 'anna', 'anna-lena', 'bert'",
    }.items():
        with pytest.raises(ValueError, match=answer):
            remove(source.url, tmp_path / "out", selection)
    with pytest.raises(ValueError, match="say --speaker NAME"):
        Selection()
    assert not (tmp_path / "out").exists()
    remove(source.url, tmp_path / "calls", Selection(corpus="talks"))
    with pytest.raises(ValueError, match="nothing but corpus 'calls' is in this set"):
        remove(tmp_path / "calls", tmp_path / "out", Selection(corpus="calls"))


def test_a_killed_call_goes_on_and_an_other_selection_never_takes_over_its_shards(
    source: ShardSet, template: ChatTemplate, tmp_path: Path
) -> None:
    token_counts(source, template)

    class Killed(BaseException):
        pass

    def kill_at(progress: int) -> None:
        def stop(done: int, total: int) -> None:
            if done == progress:
                raise Killed

        with pytest.raises(Killed):
            remove(source.url, tmp_path / "out", Selection("anna"), stop)

    remove(source.url, tmp_path / "whole", Selection("anna"))
    kill_at(2)
    with pytest.raises(ValueError, match="unfinished"):
        ShardSet.open(tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "shards").iterdir()}
    (tmp_path / "out" / "_tmp" / "000002.tar").write_bytes(b"half a tar")
    for leftover in (".dataset.json.x1", "commits/.000002.json.x2", "shards/000002-0123456789ab.tar"):
        (tmp_path / "out" / leftover).write_bytes(b"half")
    remove(source.url, tmp_path / "out", Selection("anna"))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    again = remove(source.url, tmp_path / "out", Selection("anna"))  # the same: proved once more
    assert (again.kept, len(again.proved)) == (15, 4)
    with pytest.raises(ValueError, match="holds another shard set"):
        remove(source.url, tmp_path / "out", Selection("bert"))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")

    for path in sorted((tmp_path / "out").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    kill_at(2)
    remove(source.url, tmp_path / "out", Selection("bert"))
    remove(source.url, tmp_path / "bert", Selection("bert"))
    assert contents(tmp_path / "out") == contents(tmp_path / "bert")


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_folders_with_something_else_are_refused_untouched(source: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(ValueError, match="notes: holds something else"):
        remove(source.url, tmp_path / "notes", Selection("anna"))
    assert (tmp_path / "notes" / "a.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="source: holds another shard set"):
        remove(source.url, source.url, Selection("anna"))


def test_a_corpus_that_is_still_listed_fails_the_proof(
    source: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = remove_module._about
    monkeypatch.setattr(
        remove_module, "_about", lambda record, *rest: real(record, *rest) | {"corpora": record["corpora"]}
    )
    with pytest.raises(OSError, match=r"dataset\.json: names corpus 'talks', or a removed clip"):
        remove(source.url, tmp_path / "out", Selection(corpus="talks"))


def test_small_files_that_are_damaged_are_named_with_the_remedy(source: ShardSet, tmp_path: Path) -> None:
    """Each raised what Python says of it before."""
    out = tmp_path / "out"
    remove(source.url, out, Selection("anna"))
    whole, commit = contents(out), out / "commits" / "000001.json"
    remedy = "; delete this file and run the same command again"
    good = json.loads(commit.read_text())
    for content, what in {
        "": "Expecting value", "[1]": "not a JSON object", "{}": "no 'shard'", "[" * 100_000: "maximum recursion",
        json.dumps({**good, "shard": {"name": "x"}}): "no 'rows'", json.dumps({**good, "shard": 3}): "'int' object",
        json.dumps({**good, "shard": {**good["shard"], "name": "../x"}}): "'../x' is no name of a shard",
        json.dumps({**good, "corpora": [["calls", None, 1]]}): "its numbers do not add up",
        json.dumps({**good, "corpora": [["calls", 3, 4]]}): "it names no corpora",
    }.items():  # fmt: skip
        commit.write_text(content)
        with pytest.raises(ValueError) as told:
            remove(source.url, out, Selection("anna"))
        assert str(told.value).startswith(f"{commit}: damaged ({what}"), told.value
        assert remedy in str(told.value)
    commit.write_bytes(b"")
    os.truncate(commit, 2**26 + 1)
    with pytest.raises(ValueError, match="too large for what it says"):
        remove(source.url, out, Selection("anna"))
    commit.unlink()
    remove(source.url, out, Selection("anna"))
    assert contents(out) == whole
    (out / "job.json").write_text("{")
    with pytest.raises(ValueError, match=r"job\.json: damaged \(.*\); choose another folder or remove it"):
        remove(source.url, out, Selection("anna"))


def test_a_damaged_source_is_named_and_not_copied(source: ShardSet, tmp_path: Path) -> None:
    (row,) = [row for row in range(20) if source.record(row)[0].id == "calls/bert/1"]
    flip(tar_of(source, row), int(source.rows["audio_offset"][row]) + 40)
    with pytest.raises(CorruptSample, match="row 1: the audio fails its checksum"):
        remove(source.url, tmp_path / "out", Selection("anna"))
    remove(source.url, tmp_path / "out", Selection("bert"))


def test_an_overlay_becomes_a_set_that_stands_by_itself(source: ShardSet, tmp_path: Path) -> None:
    overlay = make_overlay(source, tmp_path / "overlay")
    before = everything(ShardSet.open(overlay))
    remove(overlay, tmp_path / "out", Selection("bert"))
    for path in (overlay, Path(source.url)):
        path.rename(path.with_name("away-" + path.name))
    out = ShardSet.open(tmp_path / "out")
    assert everything(out) == {name: sample for name, sample in before.items() if sample[0].speaker != "bert"}
    assert not json.loads((tmp_path / "out" / "dataset.json").read_text())["audio_files"]
    lines: list[str] = []
    assert verify(tmp_path / "out", lines.append).damages == 0


def namesakes(root: Path) -> Path:
    """Nine clips of a corpus `mead` and one of `CC0`, whose speakers and ids are called as other things are."""
    flac = encode_flac(np.arange(2000, dtype=np.int16))
    names = ["mead", "continue", "CC-BY", "w", "2", "q@main", "Say it.", "anna", "bert", "anna"]

    def fill(tar: TarShard) -> None:
        for i, name in enumerate(names):
            corpus = "mead" if i < 9 else "CC0"
            utterance = Utterance(id=f"{i}", audio="a", text="t", corpus=corpus, speaker=name, licence="CC-BY")
            tar.add(utterance, Continuation(prompt="continue", text="r", finished=True, writer="w"), flac, 2000)

    with NewSet.begin(root, {}) as new:
        shard = new.write_shard(0, fill)
        assert shard is not None
        job = {"llm": "q@main", "prompt": "continue", "wording": ["", "Say it."], "list": ["mead"]}
        about = {"prompt": "continue", "writers": ["w"], "versions": {"numpy": "2"}, "job": job}
        corpora = [{"corpus": name, "licence": "CC-BY", "clips": n} for name, n in (("CC0", 1), ("mead", 9))]
        new.finish([shard], [], 0, {**about, "corpora": corpora})
    return root


@pytest.mark.parametrize(
    ("selection", "stays"),
    [
        (Selection("mead"), "a corpus"), (Selection("mead", "mead"), "a corpus"), (Selection("2"), "a version"),
        (Selection("continue"), "the prompt"), (Selection("CC-BY"), "a licence"), (Selection("w"), "a writer"),
        (Selection("q@main"), "the LLM"), (Selection("Say it."), "words of the prompt"),
        (Selection(corpus="CC0"), None), (Selection("anna"), None),
    ],
)  # fmt: skip
def test_a_speaker_can_be_called_as_something_that_stays(
    selection: Selection, stays: str | None, tmp_path: Path
) -> None:
    removed = remove(namesakes(tmp_path / "set"), tmp_path / "out", selection)
    assert removed.kept == {"anna": 8}.get(selection.name, 9)
    said = removed.proved[-1].removeprefix("all 6 files in it belong to it, and the 3 that hold words name none of ")
    assert said == ("those removed" if stays is None else f"those removed; {selection.name!r} stands there as {stays}")


def test_what_a_bug_would_leave_behind_fails_the_proof(
    source: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def proof_after(change: object) -> str:
        real = NewSet.finish

        def finish(self: NewSet, *arguments: object) -> object:
            record = real(self, *arguments)  # type: ignore[arg-type]
            change(Path(self.store.url))  # type: ignore[operator]
            return record

        with monkeypatch.context() as patch, pytest.raises(OSError) as failed:
            patch.setattr(NewSet, "finish", finish)
            remove(source.url, tmp_path / "out", Selection("anna"))
        assert "not proved to be without speaker 'anna'; delete it and try again" in str(failed.value)
        return str(failed.value)

    assert "out/rejects/000000.jsonl: belongs to no set" in proof_after(
        lambda root: ((root / "rejects").mkdir(), (root / "rejects" / "000000.jsonl").write_text("anna"))
    )
    (tmp_path / "out" / "rejects" / "000000.jsonl").unlink()
    assert "dataset.json: names speaker 'anna', or a removed clip" in proof_after(
        lambda root: edit(root, job={"list": [{"of": "anna"}]})
    )
    assert "dataset.json: names speaker 'anna', or a removed clip" in proof_after(
        lambda root: edit(root, notes="calls/anna/0")
    )
    assert "dataset.json: names speaker 'anna', or a removed clip" in proof_after(
        lambda root: edit(root, corpora=[{"corpus": "calls", "licence": "CC0", "speaker": "anna"}])
    )
    assert "commits/000001.json: damaged (not a JSON object); delete it" in proof_after(
        lambda root: (root / "commits" / "000001.json").write_text("[]")
    )
    (tmp_path / "out" / "commits" / "000001.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(remove_module.Selection, "rows", lambda self, rows: np.arange(len(rows)) % 20 == 0)
        with pytest.raises(OSError, match=r"row 3: is still there\n"):
            remove(source.url, tmp_path / "other", Selection("anna"))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(speakers=st.lists(st.sampled_from(["a", "b", "ab", None]), min_size=1, max_size=8), gone=st.sampled_from("ab"))
def test_of_any_set_what_is_left_is_what_does_not_match(
    speakers: list[str | None], gone: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("sets")
    flac = encode_flac(np.arange(2000, dtype=np.int16))

    def fill(tar: TarShard) -> None:
        for i, speaker in enumerate(speakers):
            tar.add(Utterance(id=f"{i}", audio="a", text="t", corpus="c", speaker=speaker), None, flac, 2000)

    with NewSet.begin(root / "set", {}) as new:
        shard = new.write_shard(0, fill)
        assert shard is not None
        new.finish([shard], [AudioFile(shard.tar, shard.bytes)], 0, {"prompt": None, "corpora": [{"corpus": "c"}]})
    if gone not in speakers or set(speakers) == {gone}:
        with pytest.raises(ValueError, match=r"no speaker|nothing but"):
            remove(root / "set", root / "out", Selection(gone))
    else:
        removed = remove(root / "set", root / "out", Selection(gone))
        assert (removed.kept, removed.removed) == (len(speakers) - speakers.count(gone), speakers.count(gone))


def test_a_set_in_a_bucket_is_made_and_proved_like_one_on_a_disk(
    source: ShardSet, s3: S3Server, tmp_path: Path
) -> None:
    bucket = open_store(ROOT)
    for path in Path(source.url).rglob("*"):
        if path.is_file() and path.name != ".lock":
            bucket.write(path.relative_to(source.url).as_posix(), path.read_bytes())
    here, there = tmp_path / "out", f"s3://{BUCKET}/sets/out"
    on_disk = remove(source.url, here, Selection("anna"))
    for _ in range(2):
        in_bucket = remove(ROOT, there, Selection("anna"))
        assert (in_bucket.dataset_id, in_bucket.kept, in_bucket.removed) == (on_disk.dataset_id, 15, 5)
        assert in_bucket.proved[:3] == on_disk.proved[:3]
    assert everything(ShardSet.open(there)) == everything(ShardSet.open(here))
    with pytest.raises(ValueError, match="holds another shard set"):
        remove(ROOT, there, Selection("bert"))
    open_store(there).write("rejects/000000.jsonl", b"anna")
    with pytest.raises(OSError, match=r"rejects/000000\.jsonl: belongs to no set"):
        remove(ROOT, there, Selection("anna"))
