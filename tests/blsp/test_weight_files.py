from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from blsp.weight_files import stored_tensors


@pytest.fixture
def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(4, 3),
        "a.bias": torch.randn(4).bfloat16(),
        "b.weight": torch.randn(2, 2, 5).half(),
        "scalar": torch.tensor(3.0),
    }


def write(folder: Path, weights: dict[str, Tensor], suffix: str, num_shards: int) -> None:
    """As transformers lays them out."""
    stem = {"safetensors": "model", "bin": "pytorch_model"}[suffix]
    save: Any = save_file if suffix == "safetensors" else torch.save
    if num_shards == 1:
        save(weights, folder / f"{stem}.{suffix}")
        return
    names, weight_map = sorted(weights), {}
    for k in range(num_shards):
        file = f"{stem}-{k + 1:05d}-of-{num_shards:05d}.{suffix}"
        save({name: weights[name] for name in names[k::num_shards]}, folder / file)
        weight_map |= dict.fromkeys(names[k::num_shards], file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_every_layout_gives_the_same_tensors(
    tmp_path: Path, weights: dict[str, Tensor], suffix: str, num_shards: int
) -> None:
    write(tmp_path, weights, suffix, num_shards)
    stored = stored_tensors(tmp_path)
    assert stored.keys() == weights.keys()
    for name, tensor in weights.items():
        assert (stored[name].shape, stored[name].dtype) == (tuple(tensor.shape), tensor.dtype)
        torch.testing.assert_close(stored[name].read(), tensor, rtol=0, atol=0)


def test_torchs_older_file_format_is_read_too(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    torch.save(weights, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    torch.testing.assert_close({n: t.read() for n, t in stored_tensors(tmp_path).items()}, weights, rtol=0, atol=0)


def test_safetensors_are_taken_before_a_bin(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    write(tmp_path, weights, "safetensors", 2)
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    assert stored_tensors(tmp_path).keys() == weights.keys()


class Payload:
    """What a hostile pickle looks like: it makes a folder when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_bin_that_would_run_code_is_refused_and_runs_nothing(
    tmp_path: Path, weights: dict[str, Tensor], zipped: bool
) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({**weights, "x": Payload(tmp_path / "ran")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=r"pytorch_model\.bin: refused, because it names posix\.mkdir; nothing of it was"
    ):
        stored_tensors(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_bare_pickle_under_the_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Payload(tmp_path / "ran")}, protocol=2))
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: "):
        stored_tensors(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [{"step": 3}, {3: torch.ones(1)}, [torch.ones(1)], {"a": torch.eye(2).to_sparse()}])
def test_a_bin_of_something_else_than_tensors_by_name_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="tensors by name"):
        stored_tensors(tmp_path)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "sub/inside", "..\\outside", "..", ""])
def test_an_index_that_points_elsewhere_is_refused(
    tmp_path: Path, weights: dict[str, Tensor], suffix: str, name: str
) -> None:
    inside = tmp_path / "checkpoint"
    inside.mkdir()
    write(tmp_path, weights, suffix, 1)
    stem = {"safetensors": "model", "bin": "pytorch_model"}[suffix]
    (tmp_path / f"{stem}.{suffix}").rename(tmp_path / f"outside.{suffix}")
    index = inside / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": f"{name}.{suffix}" if name else ""}}))
    with pytest.raises(ValueError, match=r"nothing else is read|is not there"):
        stored_tensors(inside)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": ["a"]}', '{"weight_map": {"a": ["b"]}}'])
def test_an_unreadable_index_is_a_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match="is not an index of shards"):
        stored_tensors(tmp_path)


def test_a_shard_that_is_not_there_is_named(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    write(tmp_path, weights, "safetensors", 2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"names model-00002-of-00002\.safetensors, which is not there"):
        stored_tensors(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    write(tmp_path, weights, "safetensors", 2)
    for path in tmp_path.glob("*.safetensors"):
        save_file(weights, path)
    with pytest.raises(ValueError, match=r"which model-00001-of-00002\.safetensors holds too"):
        stored_tensors(tmp_path)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_file_that_is_cut_short_is_a_sentence(tmp_path: Path, weights: dict[str, Tensor], suffix: str) -> None:
    write(tmp_path, weights, suffix, 1)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=str(path.name)):
        stored_tensors(tmp_path)


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="a is of type I8"):
        stored_tensors(tmp_path)


def test_a_folder_without_weights_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected model\.safetensors or pytorch_model\.bin"):
        stored_tensors(tmp_path)
