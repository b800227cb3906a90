from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from shards.sample import Continuation, Utterance
from shards.tasks import (
    SUBFOLDERS,
    Clip,
    NoSpaceError,
    Task,
    plan_tasks,
    read_commit,
    remove_leftovers,
    requests,
    write_task,
)


def clip(folder: Path, name: str, text: str = "words", emotion: str | None = "sad", seconds: float = 0.5) -> Clip:
    noise = np.random.default_rng(len(name)).normal(0, 0.1, int(16000 * seconds))
    soundfile.write(folder / f"{name}.wav", noise, 16000)
    utterance = Utterance(id=name, audio=f"{name}.wav", text=text, corpus="c", emotion=emotion)
    return Clip(utterance, str(folder / f"{name}.wav"))


def written(*texts: str) -> list[Continuation]:
    return [Continuation(prompt="continue_emotion", text=text, finished=True, writer="w") for text in texts]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    for name in SUBFOLDERS:
        (tmp_path / "out" / name).mkdir(parents=True)
    return tmp_path / "out"


@given(st.lists(st.text(min_size=1), max_size=60, unique=True), st.integers(1, 9))
def test_every_clip_is_in_one_task_in_an_order_that_only_ids_decide(ids: list[str], size: int) -> None:
    clips = [Clip(Utterance(id=name, audio="a", text="t", corpus="c"), "a") for name in ids]
    tasks = plan_tasks(clips, size)
    assert tasks == plan_tasks(reversed(clips), size)
    assert sorted(clip.utterance.id for task in tasks for clip in task.clips) == sorted(ids)
    assert [len(task.clips) for task in tasks[:-1]] == [size] * (len(tasks) - 1)


def test_bad_clips_become_rejects_and_the_others_a_shard(out: Path, tmp_path: Path) -> None:
    gone = Clip(Utterance(id="gone", audio="x", text="words", corpus="c", emotion="sad"), "/nowhere/x.wav")
    clips = (
        clip(tmp_path, "good"),
        gone,
        clip(tmp_path, "mute", text=" "),
        clip(tmp_path, "unlabelled", emotion=None),
        clip(tmp_path, "refused"),
        clip(tmp_path, "short", seconds=0.01),
        clip(tmp_path, "fine"),
    )
    task = Task(0, clips)
    assert [request.text for request in requests(task, "continue_emotion")] == ["words"] * 5
    commit = write_task(
        out, task, "continue_emotion", written("and on", "-", "I cannot assist with that", "", "and off")
    )
    assert (commit.rows, commit.inputs) == (2, 7)
    assert commit.rejected == {
        "llm_refusal": 1, "missing_audio": 1, "no_text": 1, "too_short": 1, "unknown_emotion": 1,
    }  # fmt: skip
    rejects = (out / "rejects" / "000000.jsonl").read_text()
    assert rejects.count("\n") == 5 and "/nowhere/x.wav: no such file" in rejects
    assert list((out / "_tmp").iterdir()) == []


def test_a_task_done_twice_counts_once_and_the_first_stays(out: Path, tmp_path: Path) -> None:
    task = Task(0, (clip(tmp_path, "a"),))
    first = write_task(out, task, "continue_emotion", written("one"))
    assert write_task(out, task, "continue_emotion", written("two")) == first == read_commit(out, 0)


def test_of_two_at_once_one_wins(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task(0, (clip(tmp_path, "a"),))
    first = write_task(out, task, "continue_emotion", written("one"))
    answers = iter([None, first])  # the second attempt begins before the first has committed
    monkeypatch.setattr("shards.tasks.read_commit", lambda out, number: next(answers))
    assert write_task(out, task, "continue_emotion", written("two")) == first
    monkeypatch.undo()
    remove_leftovers(out, [first])
    assert [path.stem for path in (out / "shards").iterdir()] == [first.name]


def test_a_task_without_a_usable_clip_is_done_without_a_shard(out: Path, tmp_path: Path) -> None:
    commit = write_task(out, Task(0, (clip(tmp_path, "a", text=""),)), "continue_emotion", [])
    assert (commit.name, commit.rows, commit.rejected) == (None, 0, {"no_text": 1})
    assert list((out / "shards").iterdir()) == []


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
    for name in SUBFOLDERS:
        (small_disk / name).mkdir()
    small, large = Task(0, (clip(tmp_path, "a"),)), Task(1, (clip(tmp_path, "b", seconds=20),))
    first = write_task(small_disk, small, "continue_emotion", written("one"))
    with pytest.raises(NoSpaceError, match=f"no space left while writing shard 1 to {small_disk}"):
        write_task(small_disk, large, "continue_emotion", written("two"))
    assert read_commit(small_disk, 0) == first
    assert read_commit(small_disk, 1) is None
    assert list((small_disk / "_tmp").iterdir()) == []
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    assert write_task(small_disk, large, "continue_emotion", written("two")).rows == 1
