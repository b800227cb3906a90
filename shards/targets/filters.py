"""Which continuations are left out of a set, and which are only counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from shards.sample import Continuation, Utterance
from shards.targets.labels import has_label_word, names_label
from shards.targets.languages import in_another_language
from shards.targets.refusals import refuses
from shards.targets.repeats import repeats

FilterName = Literal["refusal", "wrong_language", "repeats", "names_emotion"]
FILTERS: tuple[FilterName, ...] = get_args(FilterName)
LABEL_WORD = "label_word"  # counted, never dropped

# In the order in which they are asked; the first that drops a text names its reason.
_FAULTY: dict[FilterName, Callable[[str, Utterance], bool]] = {
    "refusal": lambda text, utterance: refuses(text),
    "wrong_language": lambda text, utterance: in_another_language(text, utterance.text, utterance.language),
    "repeats": lambda text, utterance: repeats(text, utterance.text),
    "names_emotion": lambda text, utterance: names_label(text),
}


@dataclass(frozen=True)
class Verdict:
    """Of one continuation: the reason it is dropped for (None: it stays), and what is counted of one that stays."""

    reason: str | None
    noted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Filters:
    """`drop` names those of FILTERS that leave a text out, the others count it. An empty text is always left out, as is
    one whose emotion gain (`shards.targets.gain`) is known and below `min_gain` nats per token."""

    drop: tuple[FilterName, ...] = FILTERS
    min_gain: float | None = None

    def __post_init__(self) -> None:
        if unknown := set(self.drop) - set(FILTERS):
            raise ValueError(f"no filter is called {min(unknown)!r}; there are {', '.join(FILTERS)}")

    def to_json(self) -> dict[str, Any]:
        """What a set depends on."""
        return {"drop": sorted(self.drop), "min_gain": self.min_gain}

    def judge(self, utterance: Utterance, continuation: Continuation) -> Verdict:
        """What becomes of a continuation of the utterance."""
        text = continuation.text
        if not text.strip():
            return Verdict("llm_empty")
        found: list[str] = []
        for name, faulty in _FAULTY.items():
            if faulty(text, utterance):
                if name in self.drop:
                    return Verdict(f"llm_{name}")
                found.append(name)
        gain = continuation.gain
        if self.min_gain is not None and gain is not None and gain < self.min_gain:
            return Verdict("llm_low_gain")
        if utterance.emotion is not None and has_label_word(text, utterance.emotion):
            found.append(LABEL_WORD)
        return Verdict(None, tuple(found))


ALL_FILTERS = Filters()
