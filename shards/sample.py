"""The nouns that travel from a corpus to a shard: `Utterance`, with the `Message`s before it, and `Continuation`.

All are plain frozen records with an exact JSON form. `from_json` checks types and refuses unknown emotions, so that
whatever passes it can be trusted downstream.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

# The authors' label ids: the position in this tuple is the id that the classifier learns.
EMOTIONS = ("neutral", "happy", "angry", "sad", "surprise")
ROLES = ("user", "assistant")
MAX_MESSAGES = 32  # before the last turn: with it at most 17 clips, so that a sample's audio stays a few MB
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


_NUMBERS = (int, float)
_OPTIONAL_NUMBER: tuple[type, ...] = (*_NUMBERS, type(None))


def _check_values(record: Message | Utterance) -> None:
    """Raises ValueError for half characters, numbers that are no seconds, or no span of audio."""
    for name, value in vars(record).items():
        if isinstance(value, str):
            if not is_unicode(value):
                raise ValueError(f"field {name!r} holds half a character (a lone surrogate): {value!r}")
        elif isinstance(value, _NUMBERS):
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"field {name!r} must be a finite number, got {value}")
            if value >= _LONGEST_S:
                raise ValueError(f"field {name!r} must be below {_LONGEST_S:,.0f} seconds, got {str(value)[:20]}")
    if record.start_s < 0 or (record.duration_s is not None and record.duration_s <= 0):
        raise ValueError(f"start_s={record.start_s}, duration_s={record.duration_s} is not a span of audio")


@dataclass(frozen=True, kw_only=True)
class Message:
    """A turn before the last one of a conversation: words, of the user also as speech.

    With `audio` it is heard, and `text` is its transcript; the span is given as in `Utterance`. `num_samples` is the
    length of that clip at 16 kHz, known once it lies in a shard.
    """

    role: str
    text: str
    audio: str | None = None
    start_s: float = 0.0
    duration_s: float | None = None
    num_samples: int | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"unknown role {self.role!r}; it is {' or '.join(ROLES)}")
        if not self.text.strip():
            raise ValueError("field 'text' is empty; a turn needs its words, speech its transcript")
        if self.num_samples is not None and not 0 < self.num_samples < _LONGEST_S:
            raise ValueError(f"field 'num_samples' must be above 0 and below {_LONGEST_S:,.0f}, got {self.num_samples}")
        _check_values(self)
        if self.audio is not None and self.role != "user":
            raise ValueError("field 'audio' is for turns of the user; the assistant answers in words")
        if self.audio is None and (self.start_s, self.duration_s, self.num_samples) != (0, None, None):
            raise ValueError("start_s, duration_s and num_samples are for turns with audio")

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Raises ValueError naming the field that is missing, unknown or of the wrong type."""
        types: dict[str, tuple[type, ...]] = {
            "role": (str,), "text": (str,), "audio": (str, type(None)), "start_s": (int, float),
            "duration_s": _OPTIONAL_NUMBER, "num_samples": (int, type(None)),
        }  # fmt: skip
        return cls(**_checked(cls, record, types))

    def to_json(self) -> dict[str, Any]:
        """Fields in declaration order; of a turn without audio its role and text alone."""
        fields = vars(self) if self.audio is not None else {"role": self.role, "text": self.text}
        return {name: value for name, value in fields.items() if value is not None}


def _messages(records: Any) -> tuple[Message, ...]:
    """What the field `messages` says. Raises ValueError naming the message and what is wrong with it."""
    if len(records) > MAX_MESSAGES:
        raise ValueError(f"field 'messages' holds {len(records)} turns, more than {MAX_MESSAGES}; split it")
    messages = []
    for number, record in enumerate(records, start=1):
        try:
            messages.append(Message.from_json(record))
        except ValueError as error:
            raise ValueError(f"field 'messages', turn {number}: {error}") from None
    return tuple(messages)


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One line of a manifest: a span of audio, what was said, and (in emotion corpora) how.

    `audio` is a path, absolute or relative to the manifest's folder. `start_s` and `duration_s` are seconds
    below 1e7; `duration_s=None` means "to the end of the file". `emotion` is one of EMOTIONS or None. `text_raw` is the
    transcript as the corpus has it, where `text` is in another style and both are kept. `turn` is its place in its
    `dialogue`, from 0. `messages` are the turns before it if it is the last one of a conversation: of the user and the
    assistant in turn.
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
    text_raw: str | None = None
    session: str | None = None
    dialogue: str | None = None
    turn: int | None = None
    messages: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("field 'id' is empty")
        if self.emotion is not None and self.emotion not in EMOTIONS:
            raise ValueError(f"unknown emotion {self.emotion!r}; known are {', '.join(EMOTIONS)}, or null for none")
        _check_values(self)
        roles = [message.role for message in self.messages]
        if roles != [ROLES[i % 2] for i in range(len(roles))] or len(roles) % 2:
            raise ValueError(
                "field 'messages' must be turns of user and assistant, alternately, and end with the assistant's: the "
                f"utterance itself is the user's next; they are of {', '.join(roles)}"
            )

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Raises ValueError naming the field that is missing, unknown or of the wrong type."""
        text, optional_text = (str,), (str, type(None))
        types: dict[str, tuple[type, ...]] = {
            "id": text, "audio": text, "text": text, "corpus": text, "start_s": (int, float),
            "duration_s": _OPTIONAL_NUMBER, "emotion": optional_text, "speaker": optional_text,
            "language": optional_text, "split": text, "licence": optional_text, "text_raw": optional_text,
            "session": optional_text, "dialogue": optional_text, "turn": (int, type(None)), "messages": (list,),
        }  # fmt: skip
        values = _checked(cls, record, types)
        return cls(**{**values, "messages": _messages(values.get("messages", []))})

    def to_json(self) -> dict[str, Any]:
        """Fields in declaration order, without those that are None or hold no messages."""
        record = {name: value for name, value in vars(self).items() if value is not None and value != ()}
        if self.messages:
            record["messages"] = [message.to_json() for message in self.messages]
        return record

    def in_split(self, splits: Sequence[str]) -> bool:
        """Whether it is of one of them; `test` stands for `test-clean` and all others that begin so too."""
        return any(self.split == name or self.split.startswith(f"{name}-") for name in splits)

    @property
    def spans(self) -> list[tuple[str, float, float | None]]:
        """`audio`, `start_s` and `duration_s` of every turn that is heard, in order; its own are the last."""
        earlier = [(m.audio, m.start_s, m.duration_s) for m in self.messages if m.audio is not None]
        return [*earlier, (self.audio, self.start_s, self.duration_s)]

    @property
    def earlier_samples(self) -> tuple[int, ...]:
        """The length at 16 kHz of each clip before the last. Raises ValueError when a message does not say it, as in a
        shard each does."""
        lengths = []
        for message in self.messages:
            if message.audio is not None:
                if message.num_samples is None:
                    raise ValueError(f"{message.audio}: its message has no num_samples")
                lengths.append(message.num_samples)
        return tuple(lengths)

    def with_paths(self, change: Callable[[str], str]) -> Self:
        """With every audio path changed."""
        messages = (m if m.audio is None else dataclasses.replace(m, audio=change(m.audio)) for m in self.messages)
        return dataclasses.replace(self, audio=change(self.audio), messages=tuple(messages))

    def with_lengths(self, num_samples: Iterable[int]) -> Self:
        """With the length at 16 kHz of each clip before the last."""
        lengths = iter(num_samples)
        messages = tuple(
            message if message.audio is None else dataclasses.replace(message, num_samples=next(lengths))
            for message in self.messages
        )
        return dataclasses.replace(self, messages=messages)


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """What the LLM wrote for an utterance.

    `prompt` is a key of `shards.prompts.PROMPTS`, and says the language. `finished` is False when the token limit cut
    the text: then no end of turn is supervised. `writer` names model, revision, prompt hash and sampling. `gain` is how
    much emotion the text carries (`shards.targets.gain`), in nats per token, where that was measured.
    """

    prompt: str
    text: str
    finished: bool
    writer: str
    gain: float | None = None

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Raises ValueError naming the field that is missing, unknown or of the wrong type."""
        text: tuple[type, ...] = (str,)
        types = {"prompt": text, "text": text, "finished": (bool,), "writer": text, "gain": _OPTIONAL_NUMBER}
        continuation = cls(**_checked(cls, record, types))
        if continuation.gain is not None and not math.isfinite(continuation.gain):
            raise ValueError(f"field 'gain' is {continuation.gain}, which is no number of nats")
        return continuation

    def to_json(self) -> dict[str, Any]:
        """Fields in declaration order, without a gain that was not measured."""
        return {name: value for name, value in vars(self).items() if value is not None}
