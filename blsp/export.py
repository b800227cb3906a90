"""What a finished run leaves for use: the parts that differ from the pretrained models, and what made them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from blsp.checkpoint_folder import file_hash
from blsp.provenance import versions
from blsp.recipe import ModelSection, StageSection
from cluster.files import write_atomically
from cluster.json_files import read_object

EXPORT_WEIGHTS, EXPORT_CONFIG = "model.safetensors", "config.json"


def write_export(
    folder: Path,
    weights: dict[str, Tensor],
    *,
    model: ModelSection,
    parts: list[str],
    stage: StageSection,
    frozen: dict[str, str],
    history: list[dict[str, Any]] | None = None,
    corpora: list[dict[str, Any]] | None = None,
    **more: Any,
) -> None:
    """Write what `load_export` reads: weights by `part.name`, and what made them. `history` are the earlier stages,
    `corpora` the clips of this one: {"corpus", "licence", "clips"} each."""
    write_atomically(folder / EXPORT_WEIGHTS, safetensors.torch.save(weights))
    content = {
        "model": json.loads(model.model_dump_json()),
        "parts": parts,
        "stage": json.loads(stage.model_dump_json()),
        "frozen": frozen,
        "versions": versions(),
        "history": history or [],
        "corpora": corpora,
        **more,
    }
    write_atomically(folder / EXPORT_CONFIG, json.dumps(content, indent=1).encode())


def export_fingerprint(run: Path) -> str:
    """`name@hash` of the weights in a run's export."""
    return f"{run.name}@{file_hash(run / 'export' / EXPORT_WEIGHTS)[:12]}"


def stages(exported: dict[str, Any]) -> list[dict[str, Any]]:
    """What the stages up to this export say of themselves, the first one first: how it was trained, on which clips
    under which licences (`corpora`, None where that was not recorded), with which versions."""
    names = ("stage", "steps", "dataset_id", "corpora", "versions", "imported_from")
    return [*exported.get("history", []), {name: exported.get(name) for name in names}]


def export_config(folder: Path) -> dict[str, Any]:
    """What an export says of itself. Raises ValueError when there is none, or something else under its name."""
    path = folder / EXPORT_CONFIG
    if not path.exists():
        raise ValueError(
            f"{folder}: no export here; has the run of {folder.parent} finished? (`blsp train` writes it at the end)"
        )
    config = read_object(path)
    fits = {"model": dict, "stage": dict, "frozen": dict, "parts": list, "history": list}
    for name, kind in fits.items():
        if not isinstance(config.get(name, [] if name == "history" else None), kind):
            raise ValueError(f"{path}: is not what a finished run says of itself (no {name})")
    if not isinstance(config["model"].get("audio_window"), str) or not isinstance(config["stage"].get("prompts"), dict):
        raise ValueError(f"{path}: is not what a finished run says of itself (no audio_window, or no prompts)")
    return config
