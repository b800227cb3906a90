"""Real ranks under the coordinator: what happens to one of them costs no bit of the result."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from blsp.recipe import TrainRecipe
from cluster.agent_link import here
from cluster.supervise import Job, supervise
from launcher import start
from launcher.recipe_files import load_kind
from tests.blsp.tiny import STAGE_1, make_encoder, make_loud_llm, make_shards, model_section
from tests.launcher.faulty_rank import SLOW_S


def test_what_is_wrong_for_all_ranks_is_said_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    argv = (sys.executable, "-m", "launcher.train", "--config", "mini_stage1", "data.sed=1")
    place, limits = here("this", 2, {}), start.limits(load_kind(TrainRecipe, "mini_stage1", []))
    job = Job(argv, Path.cwd(), tmp_path, "again", lambda: None)
    assert supervise(job, [place], limits) == 2
    assert capfd.readouterr() == ("", "blsp: override 'data.sed=1': data.sed: unknown key (nearest: seed)\n")


@pytest.mark.slow
def test_a_killed_rank_a_sleeping_one_and_a_slow_save_end_with_the_weights_of_an_undisturbed_run(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, capfd: pytest.CaptureFixture[str]
) -> None:
    model = model_section(make_loud_llm(tokenizer, tmp_path / "llm"), make_encoder(tmp_path / "encoder"))
    content = {
        "kind": "train", "run": str(tmp_path / "calm"), "model": model.model_dump(mode="json"),
        "stage": STAGE_1.model_dump(mode="json"),
        "data": {"shards": str(make_shards(tmp_path / "data", "continue", 8)), "clips_per_step": 4, "micro_batches": 2},
        "optim": {"lr": {"adapter": 1e-3}, "warmup_steps": 0, "steps": 12},
        "engine": {"checkpoint_every_steps": 2, "log_every_steps": 1},
        "supervision": {"hang_timeout_s": SLOW_S - 2},
    }  # fmt: skip
    config, faults = tmp_path / "recipe.yaml", tmp_path / "faults.json"
    config.write_text(json.dumps(content))
    calm = [sys.executable, "-m", "launcher", "train", str(config), "--processes", "2"]
    assert subprocess.run(calm, timeout=300).returncode == 0
    faults.write_text(
        json.dumps(
            [
                {"rank": 1, "step": 5, "what": "kill"},
                {"rank": 1, "step": 6, "what": "slow save"},
                {"rank": 0, "step": 9, "what": "sleep"},
            ]
        )
    )
    run = tmp_path / "stormy"
    recipe = load_kind(TrainRecipe, str(config), [f"run={run}"])
    job = start.job(recipe, config, [f"run={run}"], "the same", debug=False)
    faulty = (*job.argv[:3], "tests.launcher.faulty_rank", str(faults), *job.argv[4:])
    capfd.readouterr()
    place = here("this", 2, start.environment(2))
    assert supervise(replace(job, argv=faulty), [place], start.limits(recipe)) == 0

    out, err = capfd.readouterr()
    said = [line for line in err.splitlines() if line.startswith("blsp: ")]
    assert len(said) == 2, said
    assert said[0].startswith("blsp: rank 1 on this was ended by SIGKILL (step 6, data)")
    assert said[1].startswith("blsp: rank 0 on this did not get on for") and "(step 10, data)" in said[1]
    assert "step-000004" in out or "step-000002" in out
    failure = json.loads((run / "failure.json").read_text())
    assert (failure["what"], failure["rank"], failure["step"], failure["restarted"]) == ("hang", 0, 10, True)
    assert len(failure["ids"]) in (1, 2, 3)
    for rank, waits in ((0, "in backward"), (1, "partition_parameters.py")):
        assert waits in (run / "stacks" / f"rank-{rank}.txt").read_text()
    ends = [folder / "export" / "model.safetensors" for folder in (tmp_path / "calm", run)]
    assert ends[0].read_bytes() == ends[1].read_bytes()
