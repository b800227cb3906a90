"""How well emotion is guessed from text alone: TF-IDF of words and characters, and logistic regression.

From the transcripts: what the words give away, without a voice. From the continuations: whether the targets differ by
tone at all. Both cross-validated over speakers that the classifier has not heard of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_CLIPS = 20_000  # under a minute
_FOLDS = 5
_FEWEST_OF_A_CLASS = 10
_DRAWS, _SEED = 1000, 1
_FEATURES = 2**17  # of words, and of characters: hashed


@dataclass(frozen=True)
class Guess:
    """The mean over emotions of the share that was guessed right, with a 95 % interval (bootstrap, the wider one of
    whole groups redrawn and of clips redrawn), of `clips` in `groups` speakers or texts that were kept apart. `chance`
    is one over the emotions."""

    accuracy: float
    low: float
    high: float
    chance: float
    clips: int
    groups: int


def guess_emotion(texts: Sequence[str], emotions: Sequence[str], groups: Sequence[str]) -> Guess | None:
    """Guesses each text's emotion from texts of other groups. None where there is too little to tell: fewer than two
    emotions with ten clips each, or fewer than two groups."""
    labels = np.array(emotions)
    names, numbers = np.unique(labels, return_counts=True)
    usable = np.flatnonzero(np.isin(labels, names[numbers >= _FEWEST_OF_A_CLASS]))
    if len(usable) > MAX_CLIPS:
        usable = np.sort(np.random.default_rng(_SEED).permutation(usable)[:MAX_CLIPS])
    classes, truth = np.unique(labels[usable], return_inverse=True)
    _, group = np.unique(np.array(groups)[usable], return_inverse=True)
    if len(classes) < 2 or group.max(initial=0) < 1:
        return None
    found = _cross_validated([texts[i] for i in usable.tolist()], truth, group)
    rights, counts = np.zeros((2, group.max() + 1, len(classes)))
    np.add.at(counts, (group, truth), 1)
    np.add.at(rights, (group, truth), found == truth)
    low, high = _interval(rights, counts)
    accuracy = float((rights.sum(0) / counts.sum(0)).mean())
    return Guess(accuracy, low, high, 1 / len(classes), len(usable), len(counts))


def _cross_validated(texts: list[str], truth: NDArray[np.int64], group: NDArray[np.int64]) -> NDArray[np.int64]:
    """The class that is guessed for each text, -1 where a fold had only one class to learn."""
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    from sklearn.linear_model import SGDClassifier
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline, make_union

    # Counting needs no fit and is done once; the weights of words and the classifier know the training folds alone.
    words = HashingVectorizer(
        n_features=_FEATURES, token_pattern=r"\w+", ngram_range=(1, 2), alternate_sign=False, norm=None
    )
    characters = HashingVectorizer(
        n_features=_FEATURES, analyzer="char_wb", ngram_range=(2, 4), alternate_sign=False, norm=None
    )
    counted: Any = make_union(words, characters).transform(texts)
    found = np.full(len(texts), -1)
    for train, test in GroupKFold(min(_FOLDS, int(group.max()) + 1)).split(counted, truth, group):
        if len(np.unique(truth[train])) < 2:
            continue
        model = make_pipeline(
            TfidfTransformer(sublinear_tf=True),
            # Logistic regression, by gradient steps: lbfgs takes minutes for as many texts.
            SGDClassifier(
                loss="log_loss", alpha=1e-5, class_weight="balanced", max_iter=10, tol=None, random_state=_SEED
            ),
        )
        found[test] = model.fit(counted[train], truth[train]).predict(counted[test])
    return found


def _interval(rights: NDArray[np.float64], counts: NDArray[np.float64]) -> tuple[float, float]:
    """Of the balanced accuracy, groups [G, classes] redrawn with replacement. Few groups are alike by chance, so it is
    never narrower than with clips redrawn."""
    random, of_groups = np.random.default_rng(_SEED), []
    for _ in range(_DRAWS):
        weights = np.bincount(random.integers(0, len(counts), len(counts)), minlength=len(counts))
        number = weights @ counts
        present = number > 0
        of_groups.append(((weights @ rights)[present] / number[present]).mean())
    number = counts.sum(0)
    redrawn = random.binomial(number.astype(np.int64), rights.sum(0) / number, (_DRAWS, len(number)))
    of_clips = (redrawn / number).mean(1)
    ends = np.quantile([of_groups, of_clips], [0.025, 0.975], axis=1)
    return float(ends[0].min()), float(ends[1].max())
