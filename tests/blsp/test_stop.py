"""Two real ranks that get a second signal while one waits for a disk that hangs, and the other for the first."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import psutil
import pytest

from blsp.checkpoint_folder import newest_valid
from cluster.exit_codes import ExitCode
from tests.blsp.test_engine import World, finish, start
from tests.blsp.tiny import STAGE_1, make_encoder, make_shards, model_section

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(llm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    shards = make_shards(root / "data", "continue", 8)
    shared = {
        "kind": "train",
        "model": model_section(llm_folder, make_encoder(root / "encoder")).model_dump(mode="json"),
        "stage": STAGE_1.model_dump(mode="json"),
        "data": {"shards": str(shards), "clips_per_step": 4, "micro_batches": 2, "num_workers": 1},
        "optim": {"lr": {"adapter": 1e-3}, "warmup_steps": 0, "steps": 1000},
        "engine": {"checkpoint_every_steps": 2, "log_every_steps": 1},
    }  # fmt: skip
    return World(root, shared)


def test_a_second_signal_ends_ranks_that_wait_and_their_readers(world: World) -> None:
    recipe = world.root / "recipe.yaml"
    recipe.write_text(json.dumps(world.recipe("stuck")))
    ranks = start(2, ["tests.blsp.stuck_disk", "--config", str(recipe)])
    try:
        while len(world.log("stuck")) < 5 and all(rank.poll() is None for rank in ranks):
            time.sleep(0.02)
        readers = [reader for rank in ranks for reader in psutil.Process(rank.pid).children(recursive=True)]
        for rank in ranks:
            rank.send_signal(signal.SIGTERM)
        time.sleep(2.5)
        assert [rank.poll() for rank in ranks] == [None, None], "the save is waited for"
        for rank in ranks:
            rank.send_signal(signal.SIGTERM)
        began_s = time.monotonic()
        for rank in ranks:
            rank.wait(timeout=60)
        assert time.monotonic() - began_s < 20  # less than one where nothing else runs; the disk hangs for ever
    finally:
        printed = finish(ranks)
    assert ExitCode.AT_ONCE in [rank.returncode for rank in ranks], "\n".join(printed)
    assert "ended at once by SIGTERM; the same command goes on from the newest checkpoint" in "".join(printed)
    assert len(readers) >= 2
    gone = [not reader.is_running() or reader.status() == psutil.STATUS_ZOMBIE for reader in readers]
    assert all(gone)
    folder = world.root / "stuck" / "checkpoints"
    assert newest_valid(folder) == folder / "step-000002"
