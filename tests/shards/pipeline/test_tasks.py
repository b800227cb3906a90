from __future__ import annotations

import json
import resource
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from shards.decoder import Decoder
from shards.pipeline.answers import Answers, answer, requests
from shards.pipeline.attempts import attempt, remove_dead_attempts
from shards.pipeline.clips import Clip
from shards.pipeline.tasks import (
    Commit,
    NoSpaceError,
    Task,
    job_fingerprint,
    read_commit,
    read_commits,
    remove_strays,
    write_task,
)
from shards.prompts import ChatTemplate
from shards.sample import Continuation, Utterance
from shards.sets.store import Store, open_store
from shards.sets.tokens import TOKEN_COUNTS, count_tokens
from shards.writers.protocol import Request
from tests.shards.test_audio import bad_files

PROMPT = "continue_emotion"


def clip(folder: Path, name: str, text: str = "words", emotion: str | None = "sad", seconds: float = 0.5) -> Clip:
    noise = np.random.default_rng(len(name)).normal(0, 0.1, int(16000 * seconds))
    soundfile.write(folder / f"{name}.wav", noise, 16000)
    utterance = Utterance(id=name, audio=f"{name}.wav", text=text, corpus="c", emotion=emotion)
    return Clip(utterance, (str(folder / f"{name}.wav"),))


def written(*texts: str) -> Answers:
    return Answers([Continuation(prompt=PROMPT, text=text, finished=True, writer="w") for text in texts])


def write(store: Store, clips: Sequence[Clip], *texts: str, number: int = 0) -> Commit:
    return write_task(store, Task(number, len(clips)), clips, PROMPT, written(*texts))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def store(out: Path) -> Store:
    return open_store(out)


def test_bad_clips_become_rejects_and_the_others_a_shard(store: Store, out: Path, tmp_path: Path) -> None:
    gone = Clip(Utterance(id="gone", audio="x", text="words", corpus="c", emotion="sad"), ("/nowhere/x.wav",))
    clips = (
        clip(tmp_path, "good"),
        gone,
        clip(tmp_path, "mute", text=" "),
        clip(tmp_path, "unlabelled", emotion=None),
        clip(tmp_path, "refused"),
        clip(tmp_path, "short", seconds=0.01),
        clip(tmp_path, "fine"),
    )
    assert [request.text for request in requests(clips, PROMPT)] == ["words"] * 5
    commit = write(store, clips, "and on", "-", "I cannot assist with that", "", "and off")
    assert (commit.rows, commit.inputs) == (2, 7)
    assert commit.corpora == [("c", None, 2)]
    assert commit.rejected == {
        "llm_refusal": 1, "missing_audio": 1, "no_text": 1, "too_short": 1, "unknown_emotion": 1,
    }  # fmt: skip
    rejects = (out / "rejects" / str(commit.rejects)).read_text()
    assert rejects.count("\n") == 5 and "/nowhere/x.wav: no such file" in rejects
    assert list((out / "_tmp").iterdir()) == []
    assert all((out / name).is_file() for name in commit.files)


def test_a_task_done_twice_counts_once_and_the_first_stays(store: Store, tmp_path: Path) -> None:
    clips = (clip(tmp_path, "a"),)
    first = write(store, clips, "one")
    assert write(store, clips, "two") == first == read_commit(store, 0)
    assert list(read_commits(store)) == [first]


def test_of_two_at_once_one_wins_and_the_other_leaves_nothing(
    store: Store, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = (clip(tmp_path, "a"), clip(tmp_path, "b", text=""))
    first = write(store, clips, "one")
    answers = iter([None, first])  # the second attempt begins before the first has committed
    monkeypatch.setattr("shards.pipeline.tasks.read_commit", lambda store, number: next(answers))
    assert write(store, clips, "two") == first
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert files == {*first.files, "commits/000000.json"}


def test_a_worker_whose_root_was_given_to_another_job_commits_nothing(store: Store, tmp_path: Path) -> None:
    clips = [clip(tmp_path, "a")]
    store.write("job.json", b"{}")
    mine = job_fingerprint({})
    assert write_task(store, Task(0, 1, job=mine), clips, PROMPT, written("one")).job == mine
    store.write("job.json", b'{"prompt": "another"}')
    with pytest.raises(ValueError, match="is now being made by another job"):
        write_task(store, Task(1, 1, job=mine), clips, PROMPT, written("one"))
    assert read_commit(store, 1) is None


def test_every_kind_of_bad_file_is_one_row_of_the_rejects(store: Store, out: Path, tmp_path: Path) -> None:
    reasons = bad_files(tmp_path)
    bad = [Utterance(id=name, audio=name, text="words", corpus="c", emotion="sad") for name in reasons]
    clips = [clip(tmp_path, "good"), *(Clip(utterance, (str(tmp_path / utterance.audio),)) for utterance in bad)]
    with Decoder() as decoder:
        commit = write_task(store, Task(0, len(clips)), clips, PROMPT, written(*["on"] * len(clips)), decoder.encode)
    assert (commit.rows, commit.inputs) == (1, len(clips))
    rows = [json.loads(line) for path in (out / "rejects").iterdir() for line in path.read_text().splitlines()]
    assert sorted((row["source"], row["reason"]) for row in rows) == sorted(reasons.items())


def test_a_disk_that_is_not_mounted_is_no_set_without_its_clips(store: Store, tmp_path: Path) -> None:
    def gone(name: str, corpus: str) -> Clip:
        utterance = Utterance(id=name, audio=f"{name}.wav", text="words", corpus=corpus, emotion="sad")
        return Clip(utterance, (f"/nowhere/{name}.wav",))

    some = [clip(tmp_path, "a"), *(gone(f"c{i}", "c") for i in range(20))]  # of c one clip is there
    assert write(store, some, *["on"] * 21).rejected == {"missing_audio": 20}
    unmounted = [clip(tmp_path, "a"), *(gone(f"d{i}", "d") for i in range(11))]
    with pytest.raises(ValueError, match=r"all 11 audio files of 'd' .*/nowhere/d\d+.wav.*is its disk mounted\?"):
        write(store, unmounted, *["on"] * 12, number=1)
    assert read_commit(store, 1) is None


def test_a_commit_that_cannot_be_right_is_named(store: Store, tmp_path: Path) -> None:
    write(store, [clip(tmp_path, "a")], "one")
    path = tmp_path / "out" / "commits" / "000000.json"
    record = json.loads(path.read_text())
    for change in ({"rows": -1}, {"task": 99}, {"rejected": {"silent": "many"}}, {"corpora": 3}, {"bytes": None}):
        path.write_text(json.dumps({**record, **change}))
        with pytest.raises(ValueError, match=r"commits/000000\.json: damaged .*; delete it, and the same command"):
            read_commit(store, 0)


def test_a_task_without_a_usable_clip_is_done_without_a_shard(store: Store, tmp_path: Path) -> None:
    commit = write(store, (clip(tmp_path, "a", text=""),))
    assert (commit.name, commit.rows, commit.rejected) == (None, 0, {"no_text": 1})
    assert store.names("shards") == []


def test_tokens_are_counted_as_texts_are_written(store: Store, tmp_path: Path, template: ChatTemplate) -> None:
    class Echo:
        name = "echo"

        def __init__(self) -> None:
            self.template = template

        def write(self, asked: Sequence[Request]) -> list[Continuation]:
            return [Continuation(prompt=PROMPT, text=f"and {q.text}", finished=True, writer="w") for q in asked]

    clips = (clip(tmp_path, "a", text="one two"), clip(tmp_path, "gone"), clip(tmp_path, "b", text="three"))
    (tmp_path / "gone.wav").unlink()
    answers = answer(Echo(), clips, PROMPT)
    commit = write_task(store, Task(0, 3), clips, PROMPT, answers)
    assert commit.tokens == template.fingerprint
    counts: NDArray[np.void] = np.load(tmp_path / "out" / commit.files[-1])
    expected = [count_tokens(template, clips[i].utterance.text, answers.continuations[i]) for i in (0, 2)]
    assert counts.dtype == TOKEN_COUNTS and counts.tolist() == expected


def test_what_no_commit_names_is_removed(store: Store, out: Path, tmp_path: Path) -> None:
    commit = write(store, (clip(tmp_path, "a"),), "one")
    for name in ("shards/000000-other.tar", "index/000000-other.npy", "rejects/000000-other.jsonl"):
        store.write(name, b"")
    store.write("rejects/duplicates.jsonl", b"")
    remove_strays(store, [commit])
    left = {f"{folder}/{name}" for folder in ("shards", "index", "rejects") for name in store.names(folder)}
    assert left == {*commit.files, "rejects/duplicates.jsonl"}


def test_only_attempts_whose_writer_is_dead_are_removed(store: Store) -> None:
    with attempt(store, "000001") as living:
        dead = living.with_name("000001-dead")
        dead.mkdir()
        dead.with_name("000001-dead.lock").touch()
        (living.parent / "unlocked").mkdir()
        remove_dead_attempts(store)
        assert sorted(living.parent.iterdir()) == sorted([living, living.with_name(f"{living.name}.lock")])
    assert list(living.parent.iterdir()) == []


@pytest.mark.parametrize("damage", [b"", b"[]", b"{}", b'{"task": 0}', b"\xff"])
def test_a_damaged_commit_is_named_with_the_remedy(store: Store, damage: bytes) -> None:
    store.write("commits/000000.json", damage)
    with pytest.raises(ValueError, match=r"commits/000000.json: damaged .*; delete it, and the same command makes"):
        read_commit(store, 0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_a_sentence_and_after_making_room_it_goes_on(small_disk: Path, tmp_path: Path) -> None:
    store, small, large = open_store(small_disk), [clip(tmp_path, "a")], [clip(tmp_path, "b", seconds=20)]
    first = write(store, small, "one")
    with pytest.raises(NoSpaceError, match=f"no space left while writing shard 1 to {small_disk}"):
        write(store, large, "two", number=1)
    assert read_commit(store, 0) == first
    assert read_commit(store, 1) is None
    assert list((small_disk / "_tmp").iterdir()) == []
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    assert write(store, large, "two", number=1).rows == 1


def test_a_limit_on_the_size_of_files_is_a_sentence(store: Store, tmp_path: Path) -> None:
    """Where nothing can be mounted this is how a disk refuses."""
    large = [clip(tmp_path, "b", seconds=20)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**17, before[1]))
    try:
        with pytest.raises(NoSpaceError, match=r"larger than a file may become here \(`ulimit -f`\); raise that limit"):
            write(store, large, "two", number=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert write(store, large, "two", number=1).rows == 1
