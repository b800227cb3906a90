from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from blsp.model import SpeechLM
from tests.blsp.tiny import CPU, make_encoder, model_section


def lose(weights: dict[str, Tensor]) -> None:
    del weights["model.layers.1.mlp.up_proj.weight"]


def add(weights: dict[str, Tensor]) -> None:
    weights["model.layers.7.mlp.up_proj.weight"] = torch.zeros(2)


def reshape(weights: dict[str, Tensor]) -> None:
    weights["model.norm.weight"] = torch.ones(3)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lose, r"lacks model\.layers\.1\.mlp\.up_proj\.weight"),
        (add, r"holds model\.layers\.7\.mlp\.up_proj\.weight, which such a model has not"),
        (reshape, r"holds model\.norm\.weight as \[3\], not \[\d+\]"),
    ],
)
def test_an_llm_is_loaded_whole_or_the_tensor_is_named(
    llm_folder: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], None], complaint: str
) -> None:
    shutil.copytree(llm_folder, tmp_path / "llm")
    weights = load_file(tmp_path / "llm" / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "llm" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"model\.llm: .*{complaint}"):
        SpeechLM.build(model_section(tmp_path / "llm", make_encoder(tmp_path / "encoder")), CPU)


def test_a_head_that_is_tied_need_not_be_there(llm_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(llm_folder, tmp_path / "llm")
    weights = load_file(tmp_path / "llm" / "model.safetensors")
    weights.pop("lm_head.weight", None)
    save_file(weights, tmp_path / "llm" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "llm" / "config.json").read_text())
    (tmp_path / "llm" / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    model = SpeechLM.build(model_section(tmp_path / "llm", make_encoder(tmp_path / "encoder")), CPU)
    assert model.llm.get_output_embeddings().weight is model.llm.get_input_embeddings().weight
