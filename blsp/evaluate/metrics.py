"""What is measured, as pure functions of texts, labels and speakers.

The tone of a continuation is never judged by a model: it is the emotion whose reference continuation (written by the
text LLM, which was told the emotion) shares most of the words that set the five references apart. Errors of hearing
raise the number of distinct continuations too, so that number means something only beside the tone's accuracy.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from shards.sample import EMOTIONS

NO_TONE = "no tone"
UNPARSED = "unparsed"
AMBIGUOUS = "ambiguous"

NUM_DRAWS = 2000
DRAW_SEED = 1

# Chinese and Japanese put no spaces between words: there every character counts as one.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_CJK}]|[^\W\d_{_CJK}]+")
_STOP_WORDS = frozenset(
    _WORD.findall(
        "a about all am an and are as at be been but by can did do does for from had has have he her his i if "
        "in into is it its just my not of on or our out she so some that the their them then there they this "
        "to up us very was we were what when which who will with would you your"
    )
)

_LABEL_WORDS = {
    "neutral": "neutral",
    "happy": "happy", "happiness": "happy", "happily": "happy",
    "angry": "angry", "anger": "angry", "angrily": "angry",
    "sad": "sad", "sadness": "sad", "sadly": "sad",
    "surprise": "surprise", "surprised": "surprise", "surprising": "surprise",
}  # fmt: skip
_NEGATIONS = frozenset({"not", "no", "never", "neither", "nor", "without", "than", "cannot"})
_CONTRASTS = frozenset({"but", "instead", "rather"})
_NEGATION_REACH = 4
_LABEL_TOKEN = re.compile(r"[a-z]+(?:['’][a-z]+)?|[.,;:!?()\n]")


def words(text: str) -> frozenset[str]:
    """The distinct words of a text: letters only, lower case."""
    return frozenset(_WORD.findall(text.lower()))


def content_words(text: str) -> frozenset[str]:
    """`words` without a small list of English function words."""
    return words(text) - _STOP_WORDS


def tone_of(continuation: str, references: Mapping[str, str]) -> str:
    """The emotion whose reference is nearest to `continuation`, or NO_TONE.

    `references` maps each emotion to the LLM's own continuation of the same transcript in that emotion. Words that all
    references share say nothing about the emotion and are left out; nearness is the Jaccard index of what remains. No
    overlap at all, or two references equally near, is NO_TONE.
    """
    sets = {emotion: words(text) for emotion, text in references.items()}
    shared = frozenset.intersection(*sets.values())
    said = words(continuation) - shared
    nearness = {emotion: _jaccard(said, reference - shared) for emotion, reference in sets.items()}
    best = max(nearness.values())
    nearest = [emotion for emotion, value in nearness.items() if value == best]
    return nearest[0] if best > 0 and len(nearest) == 1 else NO_TONE


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0


def content_kept(transcript: str, reference: str, continuation: str) -> bool | None:
    """Whether `continuation` has every content word that `reference` took over from `transcript`.

    None when the reference took over none: then there is nothing to keep.
    """
    needed = content_words(transcript) & content_words(reference)
    return needed <= words(continuation) if needed else None


def same_text(a: str, b: str) -> bool:
    """Equal but for white space."""
    return a.split() == b.split()


def parse_label(answer: str) -> str:
    """The one emotion that an answer names; AMBIGUOUS if it names several, UNPARSED if none.

    "not angry" does not name angry: a negation reaches four words, up to punctuation or a contrast ("not angry but sad"
    names sad).
    """
    named: set[str] = set()
    reach = 0
    tokens: list[str] = _LABEL_TOKEN.findall(answer.lower())
    for token, following in itertools.zip_longest(tokens, tokens[1:]):
        negates = token in _NEGATIONS or token.endswith(("n't", "n’t"))
        if negates and following not in ("only", "just"):
            reach = _NEGATION_REACH
        elif not token[0].isalpha() or token in _CONTRASTS:
            reach = 0
        else:
            if token in _LABEL_WORDS and reach == 0:
                named.add(_LABEL_WORDS[token])
            reach = max(0, reach - 1)
    if len(named) > 1:
        return AMBIGUOUS
    return named.pop() if named else UNPARSED


def word_errors(transcript: str, heard: str) -> tuple[int, int]:
    """(substitutions + deletions + insertions, words in the transcript), both texts lower-cased and without marks."""
    wanted, got = _WORD.findall(transcript.lower()), _WORD.findall(heard.lower())
    distances = list(range(len(got) + 1))
    for row, word in enumerate(wanted, start=1):
        diagonal, distances[0] = distances[0], row
        for column, other in enumerate(got, start=1):
            diagonal, distances[column] = (
                distances[column],
                min(distances[column] + 1, distances[column - 1] + 1, diagonal + (word != other)),
            )
    return distances[-1], len(wanted)


def confusion_matrix(truth: Sequence[str], answers: Sequence[str]) -> list[list[int]]:
    """Counts [true emotion][answer]: one column per emotion and a last one for answers that name none."""
    counts = np.zeros((len(EMOTIONS), len(EMOTIONS) + 1), dtype=int)
    for emotion, answer in zip(truth, answers, strict=True):
        counts[EMOTIONS.index(emotion), EMOTIONS.index(answer) if answer in EMOTIONS else -1] += 1
    rows: list[list[int]] = counts.tolist()
    return rows


def balanced_accuracy(confusion: Sequence[Sequence[int]]) -> float:
    """The mean of the recalls of the emotions that occur ("unweighted accuracy" in the SER literature)."""
    recalls = [row[i] / sum(row) for i, row in enumerate(confusion) if sum(row)]
    return float(np.mean(recalls))


@dataclass(frozen=True)
class Estimate:
    """A mean over `count` observations with its 95 % interval; `low` and `high` are None with fewer than 2 clusters."""

    value: float
    low: float | None
    high: float | None
    count: int

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        return cls(record["value"], record["low"], record["high"], record["count"])


def estimate(
    values: Iterable[float | None],
    clusters: Iterable[Hashable],
    weights: Iterable[float] | None = None,
    *,
    num_draws: int = NUM_DRAWS,
    seed: int = DRAW_SEED,
) -> Estimate | None:
    """The weighted mean of `values` with a percentile bootstrap interval that redraws whole clusters (speakers).

    Values that are None do not apply and are left out; None is returned when nothing is left. The clips of one speaker
    are alike, so redrawing clips would give intervals that are too narrow.
    """
    if weights is None:
        observed = [(v, 1.0, c) for v, c in zip(values, clusters, strict=True) if v is not None]
    else:
        observed = [(v, w, c) for v, w, c in zip(values, weights, clusters, strict=True) if v is not None]
    total_weight = sum(weight for _, weight, _ in observed)
    if not total_weight:
        return None
    names = {cluster: place for place, cluster in enumerate(dict.fromkeys(c for _, _, c in observed))}
    sums = np.zeros(len(names))
    sizes = np.zeros(len(names))
    for value, weight, cluster in observed:
        sums[names[cluster]] += value * weight
        sizes[names[cluster]] += weight
    mean = float(sums.sum() / total_weight)
    if len(names) < 2:
        return Estimate(mean, None, None, len(observed))
    low, high = _percentiles(sums, sizes, num_draws, seed)
    return Estimate(mean, low, high, len(observed))


def _percentiles(
    sums: NDArray[np.float64], sizes: NDArray[np.float64], num_draws: int, seed: int
) -> tuple[float, float]:
    shares = np.full(len(sums), 1 / len(sums))
    draws = np.random.default_rng(seed).multinomial(len(sums), shares, size=num_draws)
    drawn_sizes = draws @ sizes
    means = (draws @ sums)[drawn_sizes > 0] / drawn_sizes[drawn_sizes > 0]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def majority_share(truth: Sequence[str]) -> float:
    """The accuracy of always naming the most frequent emotion."""
    return max(truth.count(emotion) for emotion in EMOTIONS) / len(truth)
