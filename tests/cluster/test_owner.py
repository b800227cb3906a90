"""Owners of one folder on machines between which no lock reaches: two of them in one process."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster import owner
from cluster.lock import folder_lock
from cluster.owner import Owner, TakenOverError, owned

BEAT_S, LEASE_S = 0.05, 0.4


@pytest.fixture(autouse=True)
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def lock(folder: Path) -> Iterator[None]:
        folder.mkdir(parents=True, exist_ok=True)
        yield

    monkeypatch.setattr(owner, "folder_lock", lock)
    monkeypatch.setattr(owner, "_BEAT_S", BEAT_S)
    monkeypatch.setattr(owner, "_LEASE_S", LEASE_S)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


def elsewhere(folder: Path, **changes: object) -> None:
    """The newest claim is of another machine."""
    newest = max((folder / ".owner").iterdir())
    modified = newest.stat()
    newest.write_text(json.dumps({**json.loads(newest.read_text()), "host": "far", "boot": "other", **changes}))
    os.utime(newest, ns=(modified.st_atime_ns, modified.st_mtime_ns))


@contextmanager
def dead(folder: Path, **changes: object) -> Iterator[Owner]:
    """An owner on another machine that gives no sign of life and has not ended."""
    with owned(folder) as one:
        one._ended.set()
        time.sleep(2 * BEAT_S)
        elsewhere(folder, **changes)
        yield one


def test_a_living_owner_elsewhere_is_named_and_the_second_refused(tmp_path: Path) -> None:
    said: list[str] = []
    with owned(tmp_path) as first:
        elsewhere(tmp_path)
        with (
            pytest.raises(ValueError, match=f"already in use by process {os.getpid()} on far; wait for it"),
            owned(tmp_path, said.append),
        ):
            pass
        first.check()
    assert "waiting up to" in said[0]


def test_a_dead_owner_elsewhere_is_taken_over_after_a_lease_and_can_write_no_more(tmp_path: Path) -> None:
    with dead(tmp_path) as first:
        first.check()
        began_s = time.monotonic()
        with owned(tmp_path, lambda said: None) as second:
            assert time.monotonic() - began_s >= LEASE_S
            second.check()
            with pytest.raises(TakenOverError, match=r"taken over by process .* it writes no more"):
                first.check()
    with owned(tmp_path) as third:  # what the first left when it ended changes nothing
        third.check()
    assert [path.name for path in (tmp_path / ".owner").iterdir()] == ["000003.json"]


def test_a_launch_that_starts_its_run_again_need_not_wait_and_another_launch_must(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLSP_LAUNCH", "a")
    monkeypatch.setenv("BLSP_ATTEMPT", "1")
    with dead(tmp_path):
        monkeypatch.setenv("BLSP_ATTEMPT", "2")
        began_s = time.monotonic()
        with owned(tmp_path):
            assert time.monotonic() - began_s < LEASE_S
    with dead(tmp_path):
        monkeypatch.setenv("BLSP_LAUNCH", "b")
        monkeypatch.setenv("BLSP_ATTEMPT", "3")
        began_s = time.monotonic()
        with owned(tmp_path, lambda said: None):
            assert time.monotonic() - began_s >= LEASE_S


def test_an_owner_that_only_slept_does_not_take_the_folder_back(tmp_path: Path) -> None:
    with dead(tmp_path) as first, owned(tmp_path, lambda said: None) as second:
        first._ended.clear()
        first._touch()
        first.release()
        second.check()


@pytest.mark.parametrize("ended", [True, False])
def test_an_owner_that_has_ended_or_whose_job_was_started_again_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    with dead(tmp_path, ended=ended, job="4711", restart=0):
        monkeypatch.setenv("SLURM_JOB_ID", "" if ended else "4711")
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        began_s = time.monotonic()
        with owned(tmp_path) as second:
            assert time.monotonic() - began_s < LEASE_S / 2
            second.check()


def test_a_job_that_was_started_again_need_not_wait_for_the_lock_of_its_lost_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM starts a job again when a host does not answer, and on that host it may still run."""
    monkeypatch.setattr(owner, "folder_lock", folder_lock)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with owned(tmp_path) as lost:
        with pytest.raises(ValueError, match="already in use by process"), owned(tmp_path):
            pass
        lost.check()
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        said: list[str] = []
        with owned(tmp_path, said.append) as again:
            again.check()
            with pytest.raises(TakenOverError, match="it writes no more"):
                lost.check()
        assert said == [f"{tmp_path}: still held by an earlier run of job 4711, which writes no more from now on"]


def test_the_same_job_that_was_not_started_again_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with dead(tmp_path, job="4711", restart=1):
        monkeypatch.setenv("SLURM_JOB_ID", "4711")
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        with owned(tmp_path, said.append):
            assert "was in use by process" in said[0]
            assert "job 4711" in said[0]


def test_of_two_that_claim_at_once_one_wins(tmp_path: Path) -> None:
    with owned(tmp_path) as first:
        with pytest.raises(ValueError, match=r"claimed by process .* at the same moment"):
            owner._add(tmp_path / ".owner", None, owner._mine())
        first.check()


def test_who_read_the_claims_before_others_came_and_went_does_not_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = owner._add

    def late(claims: Path, newest: Path | None, mine: owner.Claim) -> Path:
        add(claims, None, mine)
        add(claims, claims / "000001.json", mine)
        (claims / "000001.json").unlink(missing_ok=True)
        return add(claims, newest, mine)

    monkeypatch.setattr(owner, "_add", late)
    with pytest.raises(TakenOverError, match="taken over by"), owned(tmp_path):
        pass


def test_a_claim_that_a_crash_has_torn_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / ".owner").mkdir()
    (tmp_path / ".owner" / "000009.json").write_text('{"host"')
    said: list[str] = []
    with owned(tmp_path, said.append) as one:
        one.check()
    assert "was in use by another process" in said[0]
    assert [path.name for path in (tmp_path / ".owner").iterdir()] == ["000010.json"]


def test_a_folder_that_is_removed_or_moved_is_made_anew_and_said(tmp_path: Path) -> None:
    said: list[str] = []
    folder = tmp_path / "run"
    with owned(folder, said.append) as one:
        for take_away in (lambda: shutil.rmtree(folder), lambda: folder.rename(tmp_path / "moved")):
            take_away()
            one.check()
            one.check()
            assert [path.name for path in (folder / ".owner").iterdir()] == ["000001.json"]
    assert len(said) == 2
    assert said[0].startswith(f"{folder}: was removed or moved away while this run writes there; made anew.")


def test_a_folder_that_is_gone_with_the_one_around_it_is_not_made_anew(tmp_path: Path) -> None:
    with owned(tmp_path / "mount" / "run") as one:
        (tmp_path / "mount").rename(tmp_path / "elsewhere")
        with pytest.raises(FileNotFoundError, match="is gone, and so is the one around it"):
            one.check()
        assert not (tmp_path / "mount").exists()
        (tmp_path / "elsewhere").rename(tmp_path / "mount")
        one.check()


def test_a_removed_folder_that_another_process_owns_meanwhile_is_that_ones(tmp_path: Path) -> None:
    with owned(tmp_path / "run") as one:
        shutil.rmtree(tmp_path / "run")
        with owned(tmp_path / "run") as other:
            assert other.number == one.number
            with pytest.raises(TakenOverError, match="taken over by"):
                one.check()
            other.check()


def test_a_removed_folder_is_nobodys_twice(tmp_path: Path) -> None:
    with owned(tmp_path / "run") as one:
        shutil.rmtree(tmp_path / "run")
        one.check()
        with owned(tmp_path / "run", lambda said: None) as other:
            with pytest.raises(TakenOverError, match="taken over by"):
                one.check()
            other.check()
