"""From what systems said to rows (one per system and clip), and from rows to the measures of a system."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blsp.evaluate import metrics
from blsp.evaluate.metrics import Estimate
from shards.sample import EMOTIONS, Utterance

PLAIN = "continue"
TONE = "continue_tone"
LABEL = "identify"


@dataclass(frozen=True)
class References:
    """The text LLM's own continuations of one transcript: without an emotion, and told each of the five."""

    plain: str
    by_emotion: Mapping[str, str]


@dataclass(frozen=True)
class Answers:
    """What a system said to each clip, in the clips' order; None for what it cannot do."""

    plain: list[str] | None = None
    tone: list[str] | None = None
    label: list[str] | None = None
    classifier: list[str] | None = None
    heard: list[str] | None = None


@dataclass(frozen=True)
class Row:
    """One clip under one system. None where something does not apply.

    `plain_said`, `tone_said` and `label_said` are what the system said under the three prompts; `tone`, `label` and
    `classifier` are the emotions read from that (or NO_TONE, UNPARSED, AMBIGUOUS); `*_exact` and `*_content` compare
    with the references.
    """

    system: str
    id: str
    text: str
    emotion: str
    speaker: str | None
    reference_plain: str
    reference_tone: str
    heard: str | None
    plain_said: str | None
    plain_exact: bool | None
    plain_content: bool | None
    tone_said: str | None
    tone: str | None
    tone_exact: bool | None
    tone_content: bool | None
    label_said: str | None
    label: str | None
    classifier: str | None

    @property
    def cluster(self) -> str:
        """The speaker, or the clip where no speaker is known."""
        return f"clip {self.id}" if self.speaker is None else f"speaker {self.speaker}"

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def score(
    system: str, utterances: Sequence[Utterance], references: Mapping[str, References], answers: Answers
) -> list[Row]:
    """One row per utterance. `references` maps each transcript to the text LLM's own continuations."""

    nothing = [None] * len(utterances)
    columns = (answers.plain, answers.tone, answers.label, answers.classifier, answers.heard)
    answered = zip(*(nothing if column is None else column for column in columns), strict=True)
    return [
        _row(system, utterance, references[utterance.text], *said)
        for utterance, said in zip(utterances, answered, strict=True)
    ]


def _row(
    system: str,
    utterance: Utterance,
    references: References,
    plain: str | None,
    tone: str | None,
    label: str | None,
    classifier: str | None,
    heard: str | None,
) -> Row:
    assert utterance.emotion is not None
    text, told = utterance.text, references.by_emotion[utterance.emotion]
    return Row(
        system=system,
        id=utterance.id,
        text=text,
        emotion=utterance.emotion,
        speaker=utterance.speaker,
        reference_plain=references.plain,
        reference_tone=told,
        heard=heard,
        plain_said=plain,
        plain_exact=None if plain is None else metrics.same_text(plain, references.plain),
        plain_content=None if plain is None else metrics.content_kept(text, references.plain, plain),
        tone_said=tone,
        tone=None if tone is None else metrics.tone_of(tone, references.by_emotion),
        tone_exact=None if tone is None else metrics.same_text(tone, told),
        tone_content=None if tone is None else metrics.content_kept(text, told, tone),
        label_said=label,
        label=None if label is None else metrics.parse_label(label),
        classifier=classifier,
    )


def tone_groups(rows: Sequence[Row]) -> list[list[Row]]:
    """The same words by the same speaker in all five emotions: five rows each, in the order of EMOTIONS."""
    groups: dict[tuple[str, str | None], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        groups[row.text, row.speaker].setdefault(row.emotion, row)
    return [[group[emotion] for emotion in EMOTIONS] for group in groups.values() if len(group) == len(EMOTIONS)]


def measures(rows: Sequence[Row]) -> dict[str, Estimate | None]:
    """Every measure of one system, with intervals clustered by speaker; None where it does not apply.

    All are shares from 0 to 1 except `distinct`: how many different continuations the same words in five tones get, 1
    to 5. `word_errors` can exceed 1.
    """

    def share(of: Callable[[Row], bool | None]) -> Estimate | None:
        return metrics.estimate(map(of, rows), [row.cluster for row in rows])

    def hits(answer: Callable[[Row], str | None]) -> Estimate | None:
        return share(lambda row: None if answer(row) is None else answer(row) == row.emotion)

    return {
        "classifier": hits(lambda row: row.classifier),
        "tone": hits(lambda row: row.tone),
        "label": hits(lambda row: row.label),
        "plain_exact": share(lambda row: row.plain_exact),
        "plain_content": share(lambda row: row.plain_content),
        "tone_exact": share(lambda row: row.tone_exact),
        "tone_content": share(lambda row: row.tone_content),
        "distinct": _distinct(rows),
        "word_errors": _word_errors(rows),
    }


def _distinct(rows: Sequence[Row]) -> Estimate | None:
    groups = [group for group in tone_groups(rows) if group[0].tone_said is not None]
    counts = [float(len({" ".join((row.tone_said or "").split()) for row in group})) for group in groups]
    return metrics.estimate(counts, [group[0].cluster for group in groups])


def _word_errors(rows: Sequence[Row]) -> Estimate | None:
    heard = [row for row in rows if row.heard is not None]
    counts = [metrics.word_errors(row.text, row.heard or "") for row in heard]
    return metrics.estimate(
        [errors / total if total else None for errors, total in counts],
        [row.cluster for row in heard],
        [total for _, total in counts],
    )


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Measures, answers that name no emotion, confusion matrices and balanced accuracies of one system, as JSON."""
    answers: dict[str, list[str] | None] = {
        "classifier": _column([row.classifier for row in rows]),
        "tone": _column([row.tone for row in rows]),
        "label": _column([row.label for row in rows]),
    }
    truth = [row.emotion for row in rows]
    confusion = {
        name: None if given is None else metrics.confusion_matrix(truth, given) for name, given in answers.items()
    }
    return {
        "measures": {name: value and dataclasses.asdict(value) for name, value in measures(rows).items()},
        "without_emotion": {
            metrics.NO_TONE: _count(answers["tone"], metrics.NO_TONE),
            metrics.UNPARSED: _count(answers["label"], metrics.UNPARSED),
            metrics.AMBIGUOUS: _count(answers["label"], metrics.AMBIGUOUS),
        },
        "confusion": confusion,
        "balanced_accuracy": {
            name: None if matrix is None else metrics.balanced_accuracy(matrix) for name, matrix in confusion.items()
        },
    }


def _column(answers: Sequence[str | None]) -> list[str] | None:
    given = [answer for answer in answers if answer is not None]
    return given if answers and len(given) == len(answers) else None


def _count(answers: Sequence[str] | None, which: str) -> int | None:
    return None if answers is None else sum(answer == which for answer in answers)
