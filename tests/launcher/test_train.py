"""What each rank of a training run says, and what it leaves to the first."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from cluster import heartbeat
from launcher import train
from tests.blsp.tiny import STAGE_1, make_encoder, make_loud_llm, make_shards, model_section


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


def test_a_rank_ends_with_its_code_whatever_python_still_waits_for() -> None:
    code = (
        "import atexit, sys, threading, time\n"
        "from launcher.train import end_with\n"
        "def main():\n"
        "    threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "    atexit.register(time.sleep, 60)\n"
        "    print('the last line')\n"
        "    {ends}\n"
        "end_with(main)"
    )
    for ends, expected, said in (
        ("return 75", 75, ""), ("sys.exit(143)", 143, ""), ("raise KeyError('mouse')", 1, "KeyError: 'mouse'\n")
    ):  # fmt: skip
        ended = subprocess.run(
            [sys.executable, "-c", code.format(ends=ends)], capture_output=True, text=True, timeout=30
        )
        assert (ended.returncode, ended.stdout) == (expected, "the last line\n")
        assert ended.stderr.endswith(said)


def test_a_port_that_the_agent_chose_and_another_took_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ValueError, match="Choose another port"):
            train._refuse_taken_port(port)
        monkeypatch.setenv(heartbeat.FD, "1000")
        with pytest.raises(OSError, match=f"port {port} on this host was taken"):
            train._refuse_taken_port(port)


@pytest.mark.slow
def test_deepspeeds_own_command_with_a_hostfile_trains_and_goes_on(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """As the README types it, on one host: this one, to which no ssh need lead."""
    model = model_section(make_loud_llm(tokenizer, tmp_path / "llm"), make_encoder(tmp_path / "encoder"))
    run = tmp_path / "run"
    content = {
        "kind": "train", "run": str(run), "model": model.model_dump(mode="json"),
        "stage": STAGE_1.model_dump(mode="json"),
        "data": {"shards": str(make_shards(tmp_path / "data", "continue", 8)), "clips_per_step": 4, "micro_batches": 2},
        "optim": {"lr": {"adapter": 1e-3}, "warmup_steps": 0, "steps": 4},
        "engine": {"checkpoint_every_steps": 2, "log_every_steps": 1},
    }  # fmt: skip
    recipe, hostfile = tmp_path / "recipe.yaml", tmp_path / "hostfile"
    recipe.write_text(json.dumps(content))  # JSON is YAML too
    hostfile.write_text("localhost slots=2\n")
    command = [
        str(Path(sys.executable).with_name("deepspeed")), "--hostfile", str(hostfile), "--no_ssh_check",
        "--master_addr", "127.0.0.1", "--module", "launcher.train",
        "--config", str(recipe),
    ]  # fmt: skip

    def losses() -> list[float]:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        printed.append(ended.stdout)
        return [line["loss"] for line in map(json.loads, (run / "log.jsonl").read_text().splitlines())]

    printed: list[str] = []
    first = losses()
    shutil.rmtree(run / "checkpoints" / "step-000004")
    shutil.rmtree(run / "export")
    assert losses() == first
    assert len(first) == 4
    assert f"going on from {run}/checkpoints/step-000002" in printed[1]
    assert (run / "export" / "model.safetensors").is_file()
