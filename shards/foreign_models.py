"""Models and tokenizers that others saved: what is wrong with one is said in a sentence, and no code of theirs runs.

Transformers reads their JSON and weights, told never to trust code that ships beside them; what it then raises about
bad files is of every type there is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

_FAULTS = (UnpicklingError, TypeError, AttributeError, LookupError, ArithmeticError, ImportError, RecursionError)
_SIZES = ("Storage size calculation overflowed", "Trying to create tensor with negative dimension")  # RuntimeErrors
_WHO_CHECKS = ("huggingface_hub", "safetensors", "safetensors_rust")  # raise types of their own
_MAX_WORDS = 300  # characters of what another library says


@contextmanager
def in_a_sentence(model: str, field: str) -> Iterator[None]:
    """Whatever transformers raises about the files of `model` is a ValueError that begins with `field`, or the OSError
    that it is."""
    try:
        yield
    except UnpicklingError as error:
        raise ValueError(
            f"{field}: {model}: refused, because it {named_in_pickle(error)}; nothing of it was run"
        ) from None
    except (OSError, ValueError):
        raise
    except Exception as error:
        known = isinstance(error, _FAULTS) or type(error).__module__.partition(".")[0] in _WHO_CHECKS
        if not known and not str(error).startswith(_SIZES):
            raise
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"[:_MAX_WORDS]
        raise ValueError(f"{field}: {model} cannot be loaded; are its files whole, and its own? ({why})") from error


def refuse_kernels(model: str, revision: str | None, field: str) -> None:
    """Raises ValueError when a model's config.json asks for an implementation from the hub: transformers would fetch
    and run it where the package `kernels` is installed."""
    from transformers import PreTrainedConfig

    config, _ = PreTrainedConfig.get_config_dict(model, revision=revision)
    level: list[Any] = [config]
    while level:
        for name, value in (item for inside in level for item in inside.items()):
            if name.endswith("_implementation") and "/" in str(value):
                raise ValueError(
                    f"{field}: {model}: its config.json has {name} = {str(value)[:80]!r}, code from the hub that would "
                    "be run here; remove that line"
                )
        level = [value for inside in level for value in inside.values() if isinstance(value, dict)]


def named_in_pickle(error: UnpicklingError) -> str:
    """What torch's refusal was about, in words; its own message tells how to run the file all the same."""
    name = re.search(r"GLOBAL (\S+)", str(error))
    return f"names {name[1]}" if name else "holds more than tensors and plain values"
