"""Pretrained models by transformers' own loaders, whole or not at all: transformers only warns of what does not fit."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from shards.foreign_models import in_a_sentence, refuse_kernels

_NAMED_PROBLEMS = 4  # of each kind


def load_whole(
    loader: Any, path: str, field: str, *, spare: Collection[str] = (), others: bool = False, **options: Any
) -> Any:
    """`loader.from_pretrained(path, **options)`, a model in which every tensor is the file's.

    `spare` names tensors that may be missing; with `others` the files may hold more, as a whole Whisper does beside its
    encoder. Raises ValueError, beginning with `field`, that names each tensor that is missing, unexpected or of
    another shape.
    """
    with in_a_sentence(path, field):
        refuse_kernels(path, options.get("revision"), field)
        model, report = loader.from_pretrained(path, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    refuse_unaccounted(report, path, field, spare=spare, others=others)
    return model


def refuse_unaccounted(
    report: dict[str, Any], path: str, field: str, *, spare: Collection[str] = (), others: bool = False
) -> None:
    """Raises ValueError for what transformers' report of a loading names."""
    kinds = [
        [f"lacks {name}" for name in sorted(report["missing_keys"]) if name not in spare],
        [] if others else [f"holds {name}, which such a model has not" for name in sorted(report["unexpected_keys"])],
        [
            f"holds {name} as {list(stored)}, not {list(wanted)}"
            for name, stored, wanted in sorted(report["mismatched_keys"])
        ],
    ]
    if any(kinds):
        named = [problem for kind in kinds for problem in kind[:_NAMED_PROBLEMS]]
        left_out = sum(map(len, kinds)) - len(named)
        more = f"; and {left_out} more" if left_out else ""
        raise ValueError(
            f"{field}: {path} is not the model that its config.json describes: {'; '.join(named)}{more}; is the folder "
            "complete, and its config.json its own?"
        )
