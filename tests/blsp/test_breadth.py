"""Every adapter and encoder under real ZeRO-3 on two processes: one launch for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import HubertConfig, WavLMConfig

from blsp.model import SpeechLM
from blsp.recipe import ModelSection, TrainRecipe
from tests.blsp.test_engine import World, job, plain_training, trainings
from tests.blsp.tiny import CPU, LORA, STAGE_2, WAVE_SIZES, clip, make_shards, make_wave_encoder, model_section

pytestmark = pytest.mark.slow

LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
PAIRS: dict[str, tuple[dict[str, Any], WavLMConfig | HubertConfig]] = {
    "stack_mlp": ({"type": "stack_mlp", "stack": 4, "hidden": 8}, WavLMConfig(**WAVE_SIZES)),
    "qformer": (
        {"type": "qformer", "window": 7, "queries": 2, "hidden": 8, "heads": 2}, WavLMConfig(**WAVE_SIZES, **LARGE)
    ),
    "conv": ({"type": "conv", "bottleneck": 8, "kernels": [3, 5]}, HubertConfig(**WAVE_SIZES)),
    "encoder_lora": ({"type": "conv", "bottleneck": 8}, HubertConfig(**WAVE_SIZES, **LARGE)),
}  # fmt: skip
every_pair = pytest.mark.parametrize("name", PAIRS)


@pytest.fixture(scope="module")
def world(llm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """One run for each pair of adapter and encoder, trained by two ranks."""
    root = tmp_path_factory.mktemp("breadth")
    data = {"shards": str(make_shards(root / "data", "continue_emotion", 24)), "clips_per_step": 6, "micro_batches": 3}
    shared = {
        "kind": "train",
        "stage": STAGE_2.model_dump(mode="json"),
        "data": data,
        "optim": {"lr": dict.fromkeys(STAGE_2.train, 1e-3), "warmup_steps": 1, "steps": 4},
        "engine": {"checkpoint_every_steps": 4, "log_every_steps": 1, "gradient_checkpointing": ["llm", "encoder"]},
    }
    world = World(root, shared)
    jobs = []
    for name, (adapter, encoder) in PAIRS.items():
        folder = make_wave_encoder(root / f"encoder_{name}", encoder)
        shared["model"] = model_section(llm_folder, folder, lora=LORA, adapter=adapter).model_dump(mode="json")
        recipe = world.recipe(name)
        if name == "encoder_lora":
            recipe["model"] = {**recipe["model"], "encoder_lora": LORA}
            trained = [{"encoder": "encoder_lora"}.get(part, part) for part in STAGE_2.train]
            recipe["stage"] = {**recipe["stage"], "train": trained}
            recipe["optim"] = {**recipe["optim"], "lr": dict.fromkeys(trained, 1e-3)}
        jobs.append(job(recipe))
    results = trainings(world, 2, jobs)
    assert [[result["error"] for result in rank] for rank in results] == [[None] * len(jobs)] * 2, results
    return world


def recipe_of(world: World, name: str) -> TrainRecipe:
    return TrainRecipe.model_validate_json((world.root / name / "recipe.json").read_text())


@every_pair
def test_two_ranks_of_zero_3_train_it_as_plain_torch_does(world: World, name: str) -> None:
    norms, model = plain_training(recipe_of(world, name))
    assert [line["grad_norm"] for line in world.log(name)] == pytest.approx(norms, rel=1e-4)
    exported = load_file(world.root / name / "export" / "model.safetensors")
    torch.testing.assert_close(exported, dict(model.parts.state_dict()), rtol=0, atol=2e-5)


@every_pair
def test_its_export_loads_strictly_and_answers_clips_together_as_alone(world: World, name: str) -> None:
    model = SpeechLM.load(world.root / name, CPU)
    exported = load_file(world.root / name / "export" / "model.safetensors")
    assert model.parts.state_dict().keys() == exported.keys()
    assert all(torch.equal(value, exported[key]) for key, value in model.parts.state_dict().items())
    clips = [clip(length, i) for i, length in enumerate((5000, 16000, 9000))]
    assert model.generate(clips, "chat", 6) == [model.generate([samples], "chat", 6)[0] for samples in clips]
    alone = np.concatenate([model.classify([samples]) for samples in clips])
    np.testing.assert_allclose(model.classify(clips), alone, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "part", "change", "complaint"),
    [
        ("qformer", "adapter", {"window": 9}, r"adapter does not fit .*; set model\.adapter to .*'window': 7"),
        ("conv", "lora", {"alpha": 9.0}, r"lora does not fit .*; set model\.lora to .*'alpha': 8"),
        ("encoder_lora", "encoder_lora", {"alpha": 9.0}, r"set model\.encoder_lora to .*'alpha': 8"),
    ],
)
def test_a_number_that_shows_in_no_tensor_must_be_as_it_was_exported(
    world: World, name: str, part: str, change: dict[str, Any], complaint: str
) -> None:
    model = recipe_of(world, name).model.model_dump()
    other = {**model, part: {**model[part], **change}, "init": world.root / name}
    with pytest.raises(ValueError, match=complaint):
        SpeechLM.build(ModelSection.model_validate(other), CPU)


def test_an_encoder_that_trained_cannot_be_given_lora(world: World) -> None:
    model = {**recipe_of(world, "conv").model.model_dump(), "encoder_lora": LORA, "init": world.root / "conv"}
    with pytest.raises(ValueError, match=r"holds 'encoder', which this recipe has not; remove model\.encoder_lora"):
        SpeechLM.build(ModelSection.model_validate(model), CPU)
