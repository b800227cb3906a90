"""The model card: what a model is, what made it, what its data allows. All of it comes from the configuration."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedConfig

CARD = "README.md"
_UNKNOWN = "unknown"
# Of the licence names that corpora carry, the signs of a restriction, and what it says in its strictest reading.
_RESTRICTIONS = (
    (r"\bNC\b|non-?commercial", "no commercial use"),
    (r"\bND\b|no-?deriv", "no derivatives; a trained model may be one"),
    (r"\bSA\b|share-?alike|\bODbL\b|\bGPL", "what is derived is passed on under the same licence"),
    (r"research|academic|EULA", "research only"),
    (r"\bBY\b|attribution|\bODbL\b", "the authors are named"),
)
_FREE = r"^(CC0|CC-0|public domain|Unlicense)"
# The classes are this package's: no code lies in the folder.
_LOAD = """import blsp.hf, transformers
processor = transformers.AutoProcessor.from_pretrained("{place}")
model = transformers.AutoModelForMultimodalLM.from_pretrained("{place}")

inputs = processor([{{"role": "user", "content": [{{"type": "audio", "audio": "clip.wav"}}]}}])
print(processor.batch_decode(model.generate(**inputs, max_new_tokens=128))[0])"""


def model_card(config: PreTrainedConfig, place: str = "PATH/TO/THIS/FOLDER") -> str:
    """README.md of a saved model, with the header that the Hugging Face hub reads."""
    training: dict[str, Any] = config.training or {}
    stages: list[dict[str, Any]] = training.get("stages", [])
    header = yaml.safe_dump(_header(training, stages), sort_keys=False, allow_unicode=True)
    sections = [
        f"---\n{header}---\n\n# A chat LLM that hears",
        _what(config, training),
        f"## How to load it\nWith the package blsp-emo installed:\n```python\n{_LOAD.format(place=place)}\n```",
        _recipe(stages, training),
        _data(stages),
        _allowed(stages, training),
        _versions(training),
    ]
    return "\n\n".join(sections) + "\n"


def _header(training: dict[str, Any], stages: list[dict[str, Any]]) -> dict[str, Any]:
    """A licence of the whole is for its publisher to choose; the hub calls that `other`."""
    bases = [fingerprint.split("@")[0] for fingerprint in training.get("frozen", {}).values()]
    header: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "audio-text-to-text",
        "tags": ["speech", "speech-emotion-recognition", "blsp-emo"],
        "license": "other",
        "license_name": "see-below",
    }
    # A folder is named without its parents (`model_fingerprint`), so what has a slash is an id of the hub.
    hub_ids = [base for base in bases if re.fullmatch(r"[\w.-]+/[\w.-]+", base)]
    return {**header, **({"base_model": hub_ids} if hub_ids else {})}


def _what(config: PreTrainedConfig, training: dict[str, Any]) -> str:
    lora: dict[str, Any] | None = config.lora
    parts = [
        f"the speech encoder {_name(training, 'encoder', config.audio_config.model_type)}",
        f"an adapter ({config.adapter['type']})",
        f"the LLM {_name(training, 'llm', config.text_config.model_type)}",
    ]
    if lora is not None:
        where = "speech positions only" if lora["scope"] == "speech" else "all positions of a turn with speech"
        parts.append(f"LoRA of rank {lora['rank']} at {where}")
    if training.get("merged"):
        parts.append("LoRA merged into the LLM, which is no longer the one it was for text alone")
    if config.emotions is not None:
        parts.append(f"a classifier of {', '.join(config.emotions)}")
    listed = "\n".join(f"- {part}" for part in parts)
    return (
        "It hears what is said and how it is said, and answers; the method is BLSP-Emo "
        f"([arXiv 2406.03872](https://arxiv.org/abs/2406.03872)). Made of\n\n{listed}\n\n"
        f"Clips are 16 kHz mono; the encoder hears them with `audio_window: {config.audio_window}`."
    )


def _name(training: dict[str, Any], part: str, kind: str) -> str:
    fingerprint = training.get("frozen", {}).get(part)
    return f"`{Path(fingerprint.split('@')[0]).name}` ({kind}, `{fingerprint.split('@')[-1]}`)" if fingerprint else kind


def _recipe(stages: list[dict[str, Any]], training: dict[str, Any]) -> str:
    lines = ["## How it was made", ""]
    for number, stage in enumerate(stages, 1):
        section = stage["stage"]
        losses = ", ".join(f"{weight:g} x {name}" for name, weight in section["losses"].items())
        prompts = ", ".join(section["prompts"])
        steps = f", {stage['steps']} steps" if stage.get("steps") is not None else ""
        lines.append(
            f"{number}. trained {', '.join(section['train'])} with the losses {losses}, under the prompt {prompts}"
            + steps
        )
        if stage.get("imported_from"):
            lines.append(f"   (imported from `{Path(stage['imported_from']).name}`)")
    if not stages:
        lines.append("Nothing is known about its training.")
    return "\n".join(lines)


def _clips(stages: list[dict[str, Any]]) -> dict[tuple[str, str], int]:
    """Clips by corpus and licence: of a corpus that several stages used, the most that one of them had."""
    union: dict[tuple[str, str], int] = {}
    for stage in stages:
        here: Counter[tuple[str, str]] = Counter()
        for row in stage.get("corpora") or ():
            here[row["corpus"], row["licence"] or _UNKNOWN] += row["clips"]
        for key, clips in here.items():
            union[key] = max(union.get(key, 0), clips)
    return union


def _data(stages: list[dict[str, Any]]) -> str:
    lines = ["## Data", "", "| corpus | licence | clips |", "|---|---|---|"]
    lines += [f"| {_cell(corpus)} | {_cell(licence)} | {clips:,} |" for (corpus, licence), clips in _sorted(stages)]
    untold = [str(number) for number, stage in enumerate(stages, 1) if stage.get("corpora") is None]
    if untold or not stages:
        which = f" of stage {' and '.join(untold)}" if untold else ""
        lines += ["", f"The data{which} is not recorded: take its licences as unknown."]
    return "\n".join(lines)


def _sorted(stages: list[dict[str, Any]]) -> list[tuple[tuple[str, str], int]]:
    return sorted(_clips(stages).items())


def _cell(text: str) -> str:
    """Text of others may not open a column, a link or a tag."""
    return re.sub(r"([\\|<>`\[\]*_])", r"\\\1", " ".join(text.split()))


def _allowed(stages: list[dict[str, Any]], training: dict[str, Any]) -> str:
    lines = [
        "## What may be done with it",
        "",
        "No lawyer wrote this. Every licence below holds at once, read strictly:",
        "",
    ]
    for licence in sorted({licence for _, licence in _clips(stages)}):
        found = [what for sign, what in _RESTRICTIONS if re.search(sign, licence.replace("_", "-"), re.IGNORECASE)]
        if licence == _UNKNOWN:
            what = "not recorded: ask whoever owns the corpus before the model leaves your hands"
        elif found:
            what = "; ".join(found)
        elif re.search(_FREE, licence, re.IGNORECASE):
            what = "no condition"
        else:
            what = "read it: its conditions are not known here"
        lines.append(f"- {_cell(licence)}: {what}")
    if any(stage.get("corpora") is None for stage in stages) or not stages:
        lines.append("- data that is not recorded: as an unknown licence")
    lines.append(
        "- the licences of the LLM and of the speech encoder, which are parts of this model, hold too; they are not "
        "recorded here"
    )
    return "\n".join(lines)


def _versions(training: dict[str, Any]) -> str:
    versions: dict[str, str] = training.get("versions", {})
    told = ", ".join(f"{name} {version}" for name, version in sorted(versions.items())) or "not recorded"
    return f"## Versions\n{told}"
