from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from shards.batches.collate import FILLER_ID
from shards.corpora import build_manifest
from shards.pipeline.job import ShardJob, Summary
from shards.prompts import ChatTemplate
from shards.sample import EMOTIONS
from shards.sets import object_store, reads
from shards.sets.object_store import MAX_REQUESTS, ObjectStore
from shards.sets.shard_set import CorruptSample, ShardSet
from shards.sets.store import open_store
from shards.sets.tokens import token_counts
from shards.sets.verify import verify
from tests.shards.batches.test_reader import in_order, read, readers
from tests.shards.s3_server import BUCKET, KEY, ROOT, SECRET, TOKEN, Answer, Fault, S3Server, failing
from tests.shards.sets.made import edit, make_overlay


def copied(shard_set: ShardSet, root: str) -> ShardSet:
    """The set in the bucket, file by file."""
    copy_folder(Path(shard_set.url), root)
    return ShardSet.open(root)


def copy_folder(folder: Path, root: str) -> None:
    bucket = open_store(root)
    for path in folder.rglob("*"):
        if path.is_file() and "_tmp" not in path.parts:
            bucket.write(path.relative_to(folder).as_posix(), path.read_bytes())


def test_an_object_is_written_read_listed_and_deleted(s3: S3Server) -> None:
    bucket = open_store(ROOT + "/")
    assert bucket.url == ROOT
    bucket.write("shards/a.tar", b"0123456789")
    bucket.write("shards/b.tar", b"")
    bucket.write("shards/deeper/c.tar", b"c")
    assert (bucket.read("shards/a.tar"), bucket.size("shards/a.tar"), bucket.read("shards/b.tar")) == (
        b"0123456789", 10, b"",
    )  # fmt: skip
    assert bucket.names("shards") == ["a.tar", "b.tar"]
    assert (bucket.folders("shards"), bucket.folders(""), bucket.names("")) == (["deeper"], ["shards"], [])
    assert (bucket.names("no"), bucket.folders("no"), bucket.free_bytes()) == ([], [], None)
    bucket.write("shards/a.tar", b"new")
    assert bucket.read("shards/a.tar") == b"new"
    bucket.delete("shards/a.tar")
    bucket.delete("shards/a.tar")
    assert bucket.names("shards") == ["b.tar"]


def test_names_go_up_and_sideways_as_in_a_folder(s3: S3Server) -> None:
    open_store(f"s3://{BUCKET}/sets/base").write("shards/a.tar", b"base")
    assert open_store(ROOT).read("../base/./shards/a.tar") == b"base"
    with pytest.raises(ValueError, match="leads out of the bucket"):
        open_store(ROOT).read("../../../a.tar")


def test_ranges_are_what_a_folder_gives(s3: S3Server, tmp_path: Path) -> None:
    ranges = [("a", 2, 3), ("b", 0, 4), ("a", 8, 5), ("a", 0, 0), ("a", 10, 2), ("a", 50, 1)]
    answers = []
    for root in (ROOT, str(tmp_path)):
        open_store(root).write("a", b"0123456789")
        open_store(root).write("b", b"abcd")
        answers.append(open_store(root).read_ranges(ranges))
    assert answers[0] == answers[1] == [b"234", b"abcd", b"89", b"", b"", b""]


def test_a_missing_object_is_missing_at_once(s3: S3Server) -> None:
    bucket = open_store(ROOT)
    bucket.write("folder/file", b"")
    for action in (
        lambda: bucket.read("no"), lambda: bucket.size("no"), lambda: bucket.size("folder"),
        lambda: bucket.read_ranges([("folder/file", 0, 1), ("no", 0, 1)]),
    ):  # fmt: skip
        s3.requests.clear()
        with pytest.raises(FileNotFoundError) as failure:
            action()
        assert failure.value.errno == errno.ENOENT
        assert str(failure.value.filename).startswith(ROOT)
        assert max(s3.requests.values()) == 1
    with pytest.raises(FileNotFoundError, match="there is no such bucket"):
        open_store("s3://no-such-bucket/x").write("a", b"")


def test_a_large_file_is_sent_in_parts_and_gone_here(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "_UPLOAD_PART_BYTES", 5 * 2**20)
    content = os.urandom(1024) * 12 * 1024
    local = open_store(ROOT).scratch() / "attempt"
    local.write_bytes(content)
    s3.fault = failing("500 Internal Server Error", 1)
    open_store(ROOT).put(local, "shards/a.tar")
    assert not local.exists()
    assert open_store(ROOT).read("shards/a.tar") == content
    assert sum(count for (method, _, _), count in s3.requests.items() if method == "PUT") == 3


def test_of_many_that_create_an_object_one_is_first(s3: S3Server) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: open_store(ROOT).create("commits/0.json", b"%d" % i), range(8)))
    assert sum(made) == 1
    assert open_store(ROOT).read("commits/0.json") == b"%d" % made.index(True)


@pytest.mark.parametrize("there", [b"", b"theirs"])
def test_a_creation_whose_answer_was_lost_is_known_for_ours(s3: S3Server, there: bytes) -> None:
    drop = failing("drop", 1)

    def lose_the_answer(environ: dict[str, Any], answer: Answer) -> Iterable[bytes] | None:
        if environ["REQUEST_METHOD"] == "PUT" and s3.fault is lose_the_answer:
            s3.fault = drop
            list(s3.application(environ, lambda *_: lambda _: None))
        return drop(environ, answer)

    if there:
        open_store(ROOT).write("commit", there)
    s3.fault = lose_the_answer
    assert open_store(ROOT).create("commit", b"ours") is not bool(there)
    assert open_store(ROOT).read("commit") == (there or b"ours")


def test_a_root_is_held_against_a_second_driver_here(s3: S3Server) -> None:
    with (
        open_store(ROOT).lock(),
        pytest.raises(ValueError, match=f"{ROOT}: already in use by process {os.getpid()}"),
        open_store(ROOT).lock(),
    ):
        pass
    with open_store(ROOT).lock(), open_store(f"s3://{BUCKET}/sets/two").lock():
        assert object_store._filesystem().find(BUCKET) == []


def test_a_store_that_ignores_conditions_is_refused(s3: S3Server) -> None:
    def forget_the_condition(environ: dict[str, Any], _: Answer) -> None:
        environ.pop("HTTP_IF_NONE_MATCH", None)

    s3.fault = forget_the_condition
    with (
        pytest.raises(ValueError, match="replaces objects that it was told not to replace"),
        open_store(ROOT).lock(),
    ):
        pass


@pytest.mark.parametrize(
    "status", ["500 Internal Server Error", "503 Slow Down", "429 Too Many Requests", "409 Conflict", "drop"]
)
def test_what_passes_is_tried_again(s3: S3Server, status: str, caplog: pytest.LogCaptureFixture) -> None:
    bucket = open_store(ROOT)
    for action in (
        lambda: bucket.write("a", b"0123"), lambda: bucket.read("a"), lambda: bucket.size("a"),
        lambda: bucket.read_ranges([("a", 0, 2), ("a", 2, 2)]), lambda: bucket.names(""),
        lambda: bucket.create("b", b"1"), lambda: bucket.delete("b"),
    ):  # fmt: skip
        s3.requests.clear()
        s3.fault = failing(status, 2)
        action()
        assert sum(s3.requests.values()) >= 3
    assert "trying again in" in caplog.text
    assert bucket.read_ranges([("a", 0, 2), ("a", 2, 2)]) == [b"01", b"23"]


def test_ranges_that_arrived_are_not_fetched_again(s3: S3Server) -> None:
    bucket = open_store(ROOT)
    bucket.write("a", bytes(range(100)))
    bucket.write("b", bytes(range(100)))
    s3.requests.clear()
    s3.fault = failing("503 Slow Down", 2, matching="/b")
    assert bucket.read_ranges([("a", 0, 9), ("b", 0, 9), ("a", 9, 9)]) == [
        bytes(range(9)), bytes(range(9)), bytes(range(9, 18)),
    ]  # fmt: skip
    assert sorted(s3.requests.values()) == [1, 1, 3]


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        ("500 Internal Server Error", r"the store answers 500 InternalServerError; it is overloaded or broken"),
        ("drop", r"no answer from the store \(\w+\); check the network and AWS_ENDPOINT_URL"),
    ],
)
def test_what_does_not_pass_is_raised_by_the_deadline(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, status: str, sentence: str
) -> None:
    monkeypatch.setattr(reads, "RETRY_DEADLINE_S", 0.2)
    open_store(ROOT).write("a", b"0123")
    s3.fault = failing(status, 1e9)
    with pytest.raises(OSError, match=sentence) as failure:
        open_store(ROOT).read_ranges([("a", 0, 2)])
    assert failure.value.filename == f"{ROOT}/a"


@pytest.mark.parametrize(
    ("status", "kind"),
    [("403 Forbidden", PermissionError), ("401 Unauthorized", PermissionError), ("400 Bad Request", OSError)],
)
def test_a_refusal_is_raised_at_once(s3: S3Server, status: str, kind: type[OSError]) -> None:
    s3.fault = failing(status, 1e9)
    with pytest.raises(kind, match="the store refuses"):
        open_store(ROOT).read("a")
    assert sum(s3.requests.values()) == 1


def test_a_store_without_ranges_is_refused(s3: S3Server) -> None:
    def forget_the_range(environ: dict[str, Any], _: Answer) -> None:
        environ.pop("HTTP_RANGE", None)

    open_store(ROOT).write("a", b"0123")
    s3.fault = forget_the_range
    with pytest.raises(OSError, match="sends whole objects in place of ranges"):
        open_store(ROOT).read_ranges([("a", 0, 2)])


@pytest.mark.parametrize("threads", [1, 3])
def test_requests_of_a_process_in_flight_are_bounded(s3: S3Server, threads: int) -> None:
    bucket = open_store(ROOT)
    bucket.write("a", bytes(1000))
    s3.reset()
    s3.delay_s = 0.05
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: bucket.read_ranges([("a", 10 * i, 10) for i in range(32)]), range(threads)))
    assert MAX_REQUESTS // 2 < s3.most_in_flight <= MAX_REQUESTS
    assert sum(s3.requests.values()) == 32 * threads


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_set_in_a_bucket_reads_as_on_disk(
    s3: S3Server, shard_set: ShardSet, template: ChatTemplate, num_workers: int
) -> None:
    remote = copied(shard_set, ROOT)
    assert (remote.dataset_id, remote.rows.tolist()) == (shard_set.dataset_id, shard_set.rows.tolist())
    expected = in_order([read(reader) for reader in readers(shard_set, template, 2)])
    s3.requests.clear()
    ranks = [read(reader) for reader in readers(remote, template, 2, num_workers=num_workers)]
    assert in_order(ranks) == expected
    assert any(path.endswith(".tar") for _, path, _ in s3.requests)


@pytest.mark.parametrize("base", ["beside it", "in the bucket", "on this host"])
def test_an_overlay_in_a_bucket_finds_the_audio_of_its_base(
    s3: S3Server, shard_set: ShardSet, tmp_path: Path, base: str
) -> None:
    overlay = make_overlay(shard_set, tmp_path / "overlay")
    expected = [sample.waveform.tolist() for sample in ShardSet.open(overlay).read_many(range(17))]
    if base != "on this host":
        copied(shard_set, f"s3://{BUCKET}/sets/base")
        path = {"beside it": "../base", "in the bucket": f"s3://{BUCKET}/sets/base"}[base]
        edit(overlay, audio_files=[{"path": f"{path}/{s.tar}", "bytes": s.bytes} for _, s in shard_set.shards])
    copy_folder(overlay, ROOT)
    s3.requests.clear()
    remote = ShardSet.open(ROOT)
    assert [sample.waveform.tolist() for sample in remote.read_many(range(17))] == expected
    assert any("/sets/base/shards/" in path for _, path, _ in s3.requests) is (base != "on this host")
    assert verify(ROOT, pytest.fail).damages == 0


def test_damage_in_a_bucket_is_found(s3: S3Server, shard_set: ShardSet) -> None:
    copied(shard_set, ROOT)
    assert verify(ROOT, pytest.fail).rows_read == 23
    bucket, tar = open_store(ROOT), shard_set.shards[2][1].tar
    garbled = bytearray(bucket.read(tar))
    garbled[700] ^= 1
    bucket.write(tar, bytes(garbled))
    bucket.delete(shard_set.shards[4][1].index)
    damages: list[str] = []
    assert verify(ROOT, damages.append).damaged_shards == 2
    assert [ROOT in damage for damage in damages] == [True] * len(damages)


@pytest.fixture
def long_clips(job: ShardJob, make_shards: Callable[..., Summary], tmp_path: Path) -> ShardSet:
    """24 clips of 4 to 8 s that are as noisy as speech, in four shards."""
    random = np.random.default_rng(3)
    (tmp_path / "long").mkdir()
    lines = []
    for i in range(24):
        noise = 0.05 * random.standard_normal(int(16000 * random.uniform(4, 8)))
        soundfile.write(tmp_path / "long" / f"{i}.wav", noise, 16000)
        lines.append(json.dumps({"audio": f"{i}.wav", "text": f"Sentence number {i}.", "emotion": EMOTIONS[i % 5]}))
    (tmp_path / "long" / "clips.jsonl").write_text("\n".join(lines))
    build_manifest("jsonl", tmp_path / "long" / "clips.jsonl", tmp_path / "long" / "manifest.jsonl")
    make_shards(replace(job, manifests=(tmp_path / "long" / "manifest.jsonl",), clips_per_shard=6))
    return ShardSet.open(job.out)


def test_an_epoch_fetches_each_sample_once_whatever_the_number_of_ranks(
    s3: S3Server, long_clips: ShardSet, template: ChatTemplate
) -> None:
    token_counts(long_clips, template)
    copied(long_clips, ROOT)
    s3.reset()
    ids = []
    for rank in range(4):  # as the processes of a job: each opens the set
        reader = readers(ShardSet.open(ROOT), template, 4)[rank]
        ids += [name for step in read(reader, 0, 5) for batch in step for name in batch.ids if name != FILLER_ID]
    assert len(ids) == len(set(ids)) == 24
    samples = [(*what, count) for what, count in s3.requests.items() if what[0] == "GET" and what[1].endswith(".tar")]
    assert len(samples) == 24
    assert {count for *_, count in samples} == {1}
    size_of_set = sum(shard.bytes for _, shard in long_clips.shards)
    assert s3.bytes_sent <= 1.02 * size_of_set


def altered(s3: S3Server, alter: Callable[[bytes], bytes], times: float) -> Fault:
    """The bodies of the first answers to requests for ranges are sent altered."""
    left = times

    def fault(environ: dict[str, Any], answer: Answer) -> Iterable[bytes] | None:
        nonlocal left
        if left <= 0 or "HTTP_RANGE" not in environ:
            return None
        left -= 1
        return [alter(b"".join(s3.application(environ, answer)))]

    return fault


def test_garbled_bytes_are_read_again_and_then_corrupt(s3: S3Server, shard_set: ShardSet) -> None:
    def flip(body: bytes) -> bytes:
        return body[:50] + bytes([body[50] ^ 1]) + body[51:]

    remote = copied(shard_set, ROOT)
    s3.fault = altered(s3, flip, 1)
    s3.requests.clear()
    assert (remote.read(3).waveform == shard_set.read(3).waveform).all()
    assert sum(s3.requests.values()) == 3  # all of it, then the audio and the record
    s3.fault = altered(s3, flip, 1e9)
    with pytest.raises(CorruptSample, match=r"s3://.*tar row 3: the audio fails its checksum"):
        remote.read(3)


def test_an_answer_that_breaks_off_is_read_again(s3: S3Server) -> None:
    bucket = open_store(ROOT)
    bucket.write("a", bytes(range(100)))
    s3.fault = altered(s3, lambda body: body[:7], 2)
    assert bucket.read_ranges([("a", 20, 60)]) == [bytes(range(20, 80))]


def test_a_store_that_falls_silent_is_asked_again(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("s3fs.S3FileSystem.read_timeout", 0.3)
    monkeypatch.setattr(object_store, "_filesystems", {})
    open_store(ROOT).write("a", b"0123")
    s3.delay_s = 0.6
    s3.fault = lambda environ, answer: setattr(s3, "delay_s", 0.0)  # the first request alone is slow
    assert open_store(ROOT).read("a") == b"0123"
    assert "no answer from the store (ReadTimeoutError)" in caplog.text


def test_an_outage_is_never_a_lost_clip(
    s3: S3Server, shard_set: ShardSet, template: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = copied(shard_set, ROOT)
    (reader,) = readers(remote, template, 1)
    s3.fault = failing("503 Slow Down", 3)
    expected = in_order([read(readers(shard_set, template, 1)[0])])
    assert in_order([read(reader)]) == expected
    monkeypatch.setattr(reads, "RETRY_DEADLINE_S", 0.2)
    s3.fault = failing("503 Slow Down", 1e9)
    with pytest.raises(OSError, match="the store answers 503 SlowDown"):
        read(reader)


def test_a_store_survives_pickling_and_forks(s3: S3Server) -> None:
    bucket = open_store(ROOT)
    bucket.write("a", b"0123")
    assert pickle.loads(pickle.dumps(bucket)).read("a") == b"0123"  # noqa: S301
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(bucket.read, ["a"] * 6) == [b"0123"] * 6
    assert bucket.read("a") == b"0123"


@pytest.mark.parametrize(
    "url", [f"s3://{KEY}:{SECRET}@{BUCKET}/x", f"s3://{BUCKET}/x?X-Amz-Signature={SECRET}", f"https://u:{SECRET}@h/x"]
)
def test_an_address_with_a_secret_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError) as failure:
        open_store(url)
    text = "".join(traceback.format_exception(failure.value, chain=True))
    assert str(failure.value) and SECRET not in str(failure.value) and KEY not in str(failure.value)
    assert "AWS_ACCESS_KEY_ID" in text or "only folders and s3://bucket/prefix" in text


@pytest.mark.parametrize("url", ["s3:/bucket/prefix", "s3://", "s3://x", "s3://b cket/x", "gs://bucket/x"])
def test_what_is_no_address_of_a_bucket_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="s3://bucket/prefix"):
        open_store(url)


def everything(error: BaseException | None) -> str:
    """All that an error says and refers to."""
    if error is None:
        return ""
    return f"{error!r} {error} {error.args} {vars(error)}" + everything(error.__cause__) + everything(error.__context__)


def test_keys_are_in_no_error_log_repr_or_pickle(
    s3: S3Server, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "RETRY_DEADLINE_S", 0.05)
    caplog.set_level(logging.DEBUG)  # all loggers that have no level of their own
    object_store._filesystems.pop(os.getpid())
    bucket = open_store(ROOT)
    said = repr(bucket) + repr(vars(bucket)) + repr(pickle.dumps(bucket))
    bucket.write("a", b"0123")
    for status in ("403 Forbidden", "400 Bad Request", "500 Internal Server Error", "drop", "404 Not Found"):
        s3.fault = failing(status, 1e9)
        for action in (bucket.read, bucket.size, lambda name: bucket.read_ranges([(name, 0, 1)]), bucket.delete):
            with pytest.raises(OSError) as failure:
                action("a")
            said += everything(failure.value)
    out, err = capfd.readouterr()
    said += out + err + "".join(record.getMessage() + str(record.exc_text) for record in caplog.records)
    assert "the store answers 500" in said
    assert [secret for secret in (KEY, SECRET, TOKEN) if secret in said] == []


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"AWS_ENDPOINT_URL": "user:made-up-secret-of-tests@host"}, "AWS_ENDPOINT_URL: is not an address"),
        ({"AWS_PROFILE": "nobody"}, r"no usable keys were found \(ProfileNotFound\)"),
        ({"AWS_SECRET_ACCESS_KEY": ""}, r"no usable keys were found \(\w*Credential\w*\)"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, r"no answer from the store \(EndpointConnectionError\)"),
    ],
)
def test_a_wrong_environment_is_one_sentence(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str], sentence: str
) -> None:
    monkeypatch.setattr(reads, "RETRY_DEADLINE_S", 0.1)
    monkeypatch.setattr(object_store, "_filesystems", {})
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises((ValueError, OSError), match=sentence) as failure:
        open_store(ROOT).read("a")
    assert SECRET not in everything(failure.value)


def test_without_s3fs_the_sentence_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from shards.sets.store import open_store\n"
        "try: open_store('s3://bucket/prefix').read('a')\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "s3:// needs the package s3fs: pip install 'blsp-emo[s3]'\n"


def test_leftovers_are_found_by_the_next_process_and_are_ours_alone(s3: S3Server, tmp_path: Path) -> None:
    (open_store(ROOT).scratch() / "attempt").write_bytes(b"1")
    assert [path.name for path in ObjectStore(ROOT).scratch().iterdir()] == ["attempt"]
    assert open_store(ROOT).scratch() != open_store(ROOT + "2").scratch()
    parent = open_store(ROOT).scratch().parent.parent
    assert parent.stat().st_mode & 0o777 == 0o700
    parent.chmod(0o777)
    with pytest.raises(ValueError, match="is not a folder of yours alone"):
        open_store(ROOT).scratch()
