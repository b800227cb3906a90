"""Sizes by config.json alone, beside those of transformers' own models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from blsp.estimate.families import NoFormula, read_encoder, read_llm
from blsp.estimate.parts import read_parts, weights
from blsp.model import SpeechLM
from blsp.recipe import TrainRecipe
from tests.bench.train.shapes import SHAPES
from tests.blsp.tiny import ALL_AT_ONCE, CPU, LORA, make_encoder, model_section, whisper_config

SIZES: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
LLMS = [
    Qwen2Config(**SIZES), Qwen2Config(**SIZES, tie_word_embeddings=True), LlamaConfig(**SIZES),
    LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True), MistralConfig(**SIZES, head_dim=32),
    Qwen3Config(**SIZES), Qwen3Config(**SIZES, attention_bias=True, head_dim=48),
]  # fmt: skip


def write(folder: Path, config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config if isinstance(config, dict) else config.to_dict()))
    return folder


@pytest.mark.parametrize("config", LLMS, ids=lambda config: type(config).__name__)
def test_an_llm_has_the_tensors_that_its_configuration_means(tmp_path: Path, config: Any) -> None:
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(config)
    found = read_llm(str(write(tmp_path, config)), None)
    assert sorted(found.tensors) == sorted(p.numel() for p in llm.parameters())


def test_the_parts_that_learn_have_their_tensors_in_torchs_order(tmp_path: Path, llm_folder: Path) -> None:
    make_encoder(tmp_path / "encoder")
    for adapter in ({"bottleneck": 8, "kernels": [3, 5]}, {"type": "stack_mlp", "stack": 4, "hidden": 24}):
        section = model_section(llm_folder, tmp_path / "encoder", lora=LORA, adapter=adapter)
        model = SpeechLM.build(section, CPU)
        train = list(ALL_AT_ONCE.train)
        recipe = TrainRecipe.model_validate(
            {
                "kind": "train", "run": "run", "model": section.model_dump(), "stage": ALL_AT_ONCE.model_dump(),
                "data": {"shards": "shards", "clips_per_step": 4}, "engine": {"checkpoint_every_steps": 2},
                "optim": {"lr": dict.fromkeys(train, 1e-3), "warmup_steps": 0, "steps": 4},
            }
        )  # fmt: skip
        found = weights(read_parts(recipe), recipe)
        assert found.trained == [[p.numel() for p in model.parts[name].parameters()] for name in train]
        frozen = sum(p.numel() for name, p in model.llm.named_parameters() if "lora" not in name)
        assert sum(found.frozen) == frozen
        assert found.uncut == model.encoder.pretrained.embed_positions.weight.numel()


def test_sizes_of_real_models_are_those_that_are_known(tmp_path: Path) -> None:
    llm = read_llm(str(write(tmp_path / "llm", SHAPES["large"].llm)), None)
    assert sum(llm.tensors) == 7_615_616_512  # Qwen2.5-7B
    encoder = read_encoder(str(write(tmp_path / "encoder", SHAPES["large"].encoder)))
    assert sum(encoder.tensors) + encoder.position_table == 636_784_640  # Whisper-large-v2's encoder


@pytest.mark.parametrize(("size", "read"), [("llm", lambda folder: read_llm(folder, None)), ("encoder", read_encoder)])
def test_fewer_bits_are_not_guessed(tmp_path: Path, size: str, read: Callable[[str], object]) -> None:
    config = getattr(SHAPES["large"], size).to_dict()
    read(str(write(tmp_path, config)))
    quantized = write(tmp_path, config | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    with pytest.raises(NoFormula, match=r"config.json: has a quantization_config"):
        read(str(quantized))


def test_headers_of_weights_must_agree(tmp_path: Path) -> None:
    make_encoder(tmp_path)
    read_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(whisper_config(encoder_layers=3).to_dict()))
    with pytest.raises(ValueError, match=r"config.json means .* weights, but the files beside it hold"):
        read_encoder(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(ValueError, match=r"model.safetensors: cannot be read as safetensors weights"):
        read_encoder(str(tmp_path))


def test_a_tied_head_may_be_stored_once_more(tmp_path: Path) -> None:
    found = read_llm(str(write(tmp_path, Qwen2Config(**SIZES, tie_word_embeddings=True))), None)
    for elements in (sum(found.tensors), sum(found.tensors) + found.embeddings):
        save_file({"all": torch.zeros(elements)}, tmp_path / "model.safetensors")
        read_llm(str(tmp_path), None)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "gemma"}, r"of the family 'gemma', for which there is no formula .*nothing is guessed"),
        ({"model_type": "qwen2", "hidden_size": -1}, "hidden_size is -1, not a whole number above 0"),
        ({}, "of the family 'None'"),
    ],
)
def test_what_there_is_no_formula_for_is_refused(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    write(tmp_path, {"num_attention_heads": 2, **config})
    with pytest.raises(ValueError, match=said):
        read_llm(str(tmp_path), None)
    with pytest.raises(ValueError, match="only whisper has one"):
        read_encoder(str(tmp_path))


def test_a_hub_id_is_read_from_the_cache_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"model.llm: some/llm is neither .*`hf download some/llm config.json`"):
        read_llm("some/llm", None)
    cached = tmp_path / "models--some--llm"
    (cached / "refs").mkdir(parents=True)
    (cached / "snapshots").mkdir()
    (cached / "refs/main").write_text("0" * 40)
    write(cached / "snapshots" / ("0" * 40), LLMS[0])
    assert read_llm("some/llm", None).layers == SIZES["num_hidden_layers"]
    with pytest.raises(ValueError, match="neither"):
        read_llm("some/llm", "another")


def test_a_folder_that_is_not_here_is_not_guessed(tmp_path: Path) -> None:
    for name in (str(tmp_path / "gone"), "imported/blsp-emo/llm"):
        with pytest.raises(ValueError, match=r"model.llm: .* is not here, and its sizes are not guessed"):
            read_llm(name, None)
    with pytest.raises(ValueError, match=r"has no config.json"):
        read_llm(str(tmp_path), None)


@pytest.mark.parametrize(
    "header",
    [
        b"\xff" * 9, b"\x02\0\0\0\0\0\0\0[]", b"\x08\0\0\0\0\0\0\0{\"a\": 1}",
        b"\x14\0\0\0\0\0\0\0" + b'{"a":{"shape":["x"]}}'[:20], b"\x15\0\0\0\0\0\0\0" + b'{"a":{"shape":["x"]}}',
    ],
)  # fmt: skip
def test_nonsense_in_place_of_weights_is_a_sentence(tmp_path: Path, header: bytes) -> None:
    write(tmp_path, LLMS[0])
    (tmp_path / "model.safetensors").write_bytes(header)
    with pytest.raises(ValueError, match=r"model.safetensors: cannot be read as safetensors weights"):
        read_llm(str(tmp_path), None)
