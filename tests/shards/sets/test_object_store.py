from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shards.sets import object_store, reads
from shards.sets.object_store import MAX_REQUESTS, ObjectStore
from shards.sets.store import open_store
from tests.shards.s3_server import BUCKET, ROOT, Answer, Fault, S3Server, failing


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


def test_a_store_survives_pickling_and_forks(s3: S3Server) -> None:
    bucket = open_store(ROOT)
    bucket.write("a", b"0123")
    assert pickle.loads(pickle.dumps(bucket)).read("a") == b"0123"  # noqa: S301
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(bucket.read, ["a"] * 6) == [b"0123"] * 6
    assert bucket.read("a") == b"0123"


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
