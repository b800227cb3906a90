"""The nouns that travel from a corpus to a shard: `Utterance` and `Continuation`.

Both are plain frozen records with an exact JSON form. `from_json` checks types and refuses unknown emotions, so that
whatever passes it can be trusted downstream.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

# The authors' label ids: the position in this tuple is the id that the classifier learns.
EMOTIONS = ("neutral", "happy", "angry", "sad", "surprise")
_LONGEST_S = 1e7  # 116 days: what is longer is no second count, and does not fit where spans are computed with


def _checked(cls: type, record: Mapping[str, Any], types: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """The fields of `record` that `cls` has, after checking presence and type. Raises ValueError naming the field."""
    if not isinstance(record, Mapping):
        raise ValueError(f"expected a JSON object, got {type(record).__name__}")
    unknown = sorted(set(record) - set(types))
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}; fields are {', '.join(types)}")
    values = {}
    for field in dataclasses.fields(cls):
        if field.name not in record:
            if field.default is dataclasses.MISSING:
                raise ValueError(f"field {field.name!r} is missing")
            continue
        value, wanted = record[field.name], types[field.name]
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in wanted)
            raise ValueError(f"field {field.name!r} must be {names}, got {value!r}")
        values[field.name] = value
    return values


def is_unicode(text: str) -> bool:
    """False for half a character (a lone surrogate), which JSON can say and no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_OPTIONAL_NUMBER: tuple[type, ...] = (int, float, type(None))


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One line of a manifest: a span of audio, what was said, and (in emotion corpora) how.

    `audio` is a path, absolute or relative to the manifest's folder. `start_s` and `duration_s` are seconds
    below 1e7; `duration_s=None` means "to the end of the file". `emotion` is one of EMOTIONS or None.
    """

    id: str
    audio: str
    text: str
    corpus: str
    start_s: float = 0.0
    duration_s: float | None = None
    emotion: str | None = None
    speaker: str | None = None
    language: str | None = None
    split: str = "train"
    licence: str | None = None

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("field 'id' is empty")
        if self.emotion is not None and self.emotion not in EMOTIONS:
            raise ValueError(f"unknown emotion {self.emotion!r}; known are {', '.join(EMOTIONS)}, or null for none")
        for name, value in vars(self).items():
            if isinstance(value, str) and not is_unicode(value):
                raise ValueError(f"field {name!r} holds half a character (a lone surrogate): {value!r}")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"field {name!r} must be a finite number, got {value}")
            if isinstance(value, int | float) and value >= _LONGEST_S:
                raise ValueError(f"field {name!r} must be below {_LONGEST_S:,.0f} seconds, got {str(value)[:20]}")
        if self.start_s < 0 or (self.duration_s is not None and self.duration_s <= 0):
            raise ValueError(f"start_s={self.start_s}, duration_s={self.duration_s} is not a span of audio")

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Raises ValueError naming the field that is missing, unknown or of the wrong type."""
        text, optional_text = (str,), (str, type(None))
        types: dict[str, tuple[type, ...]] = {
            "id": text, "audio": text, "text": text, "corpus": text, "start_s": (int, float),
            "duration_s": _OPTIONAL_NUMBER, "emotion": optional_text, "speaker": optional_text,
            "language": optional_text, "split": text, "licence": optional_text,
        }  # fmt: skip
        return cls(**_checked(cls, record, types))

    def to_json(self) -> dict[str, Any]:
        """Fields in declaration order, without those that are None."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """What the LLM wrote for an utterance.

    `prompt` is a key of `shards.prompts.PROMPTS`. `finished` is False when the token limit cut the text: then no end
    of turn is supervised. `writer` names model, revision, prompt hash and sampling.
    """

    prompt: str
    text: str
    finished: bool
    writer: str

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Raises ValueError naming the field that is missing, unknown or of the wrong type."""
        return cls(**_checked(cls, record, {"prompt": (str,), "text": (str,), "finished": (bool,), "writer": (str,)}))

    def to_json(self) -> dict[str, Any]:
        """All four fields in declaration order."""
        return dict(vars(self))
