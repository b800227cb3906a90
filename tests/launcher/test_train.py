"""What each rank of a training run says, and what it leaves to the first."""

from __future__ import annotations

import time

import pytest

from launcher import train


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException, local_rank: int) -> int:
    """Exit code of one rank of two hosts with two ranks each, whose training fails with `error`."""

    def fail(config: str, overrides: list[str]) -> None:
        raise error

    monkeypatch.setattr(train, "_train", fail)
    monkeypatch.setattr(train, "_PATIENCE_S", 0.2)
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    monkeypatch.setenv("RANK", str(local_rank))
    monkeypatch.setattr("sys.argv", ["train", "--config", "mini_stage1"])
    return train.main()


def test_the_first_rank_speaks_at_once_and_the_others_wait_to_be_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    began_s = time.monotonic()
    assert failing(monkeypatch, ValueError("the shard set is unfinished"), local_rank=0) == 2
    assert time.monotonic() - began_s < 0.2
    assert capsys.readouterr().err == "blsp: the shard set is unfinished\n"
    assert failing(monkeypatch, ValueError("the shard set is unfinished"), local_rank=1) == 2
    assert time.monotonic() - began_s >= 0.2
    assert capsys.readouterr().err == "blsp, rank 1: the shard set is unfinished\n"


def test_after_ctrl_c_one_rank_says_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(monkeypatch, KeyboardInterrupt("saved at step 7"), local_rank=0) == 130
    assert capsys.readouterr().err == "blsp: saved at step 7\n"
    assert failing(monkeypatch, KeyboardInterrupt(), local_rank=0) == 130
    assert capsys.readouterr().err == f"blsp: stopped; {train.GOES_ON}\n"
    with pytest.raises(SystemExit) as left:
        failing(monkeypatch, KeyboardInterrupt("saved at step 7"), local_rank=1)
    assert (left.value.code, capsys.readouterr().err) == (130, "")


def test_a_lost_rank_is_a_sentence_and_a_bug_of_ours_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:539] Connection closed by peer [127.0.0.1]:4711")
    assert failing(monkeypatch, lost, local_rank=0) == 1
    assert capsys.readouterr().err == f"blsp: another rank ended, or its host is gone; {train.GOES_ON}\n"
    with pytest.raises(RuntimeError, match="shapes"):
        failing(monkeypatch, RuntimeError("shapes do not fit"), local_rank=0)
