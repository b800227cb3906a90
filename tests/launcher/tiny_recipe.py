"""A recipe of stage 1 that is over in seconds, with all that it names."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from tests.blsp.tiny import STAGE_1, make_encoder, make_loud_llm, make_shards, model_section


def write_recipe(folder: Path, tokenizer: PreTrainedTokenizerFast, *, steps: int = 4, **sections: Any) -> Path:
    """`folder`/recipe.yaml, which trains into `folder`/run; `sections` replace or add to its own."""
    model = model_section(make_loud_llm(tokenizer, folder / "llm"), make_encoder(folder / "encoder"))
    content = {
        "kind": "train", "run": str(folder / "run"), "model": model.model_dump(mode="json"),
        "stage": STAGE_1.model_dump(mode="json"),
        "data": {"shards": str(make_shards(folder / "data", "continue", 8)), "clips_per_step": 4, "micro_batches": 2},
        "optim": {"lr": {"adapter": 1e-3}, "warmup_steps": 0, "steps": steps},
        "engine": {"checkpoint_every_steps": 2, "log_every_steps": 1},
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(content | sections))  # JSON is YAML too
    return path


def write_page_recipes(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """shard_stage1.yaml, stage1.yaml and stage2.yaml, as docs/cluster.md has them: each reads what the one before has
    written, and `folder` is where they are typed. Its .venv is that of the tests. Returns a set to train on that is not
    yet where the shards are to be."""
    trains = json.loads(write_recipe(folder, tokenizer).read_text())
    made = Path(trains["data"]["shards"])
    trains["data"]["shards"] = "shards/asr"
    shards = {
        "kind": "shard", "manifests": ["data/manifest.jsonl"], "out": "shards/asr", "cpu_actors": 1,
        "writer": {"llm": "llm", "prompt": "continue", "max_new_tokens": 12}, "clips_per_shard": 4,
    }  # fmt: skip
    stage_2 = {**trains, "run": "runs/stage2", "model": {**trains["model"], "init": "runs/stage1"}}
    for name, recipe in (("shard_stage1", shards), ("stage1", {**trains, "run": "runs/stage1"}), ("stage2", stage_2)):
        (folder / f"{name}.yaml").write_text(json.dumps(recipe))
    (folder / ".venv").symlink_to(sys.prefix)
    return made


def losses(run: Path) -> list[float]:
    """Of the steps that the run's log tells of."""
    return [line["loss"] for line in map(json.loads, (run / "log.jsonl").read_text().splitlines())]
