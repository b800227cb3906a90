"""How often each clip is in an epoch: corpora by weight, and replayed clips by their share."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.batches.mixture import Mixture
from tests.shards.batches.test_plan import equal_clips, make, mixture, replaying, rows_of


@given(
    st.lists(st.integers(0, 2), min_size=3, max_size=90).map(np.array),
    st.dictionaries(st.sampled_from("abc"), st.sampled_from([0.1, 0.25, 0.5, 1, 1.3, 2, 3.75]), max_size=3),
    st.integers(0, 6),
)
@settings(deadline=None)
def test_an_epoch_is_the_multiset_of_the_mixture(corpus: np.ndarray, weights: dict[str, float], epoch: int) -> None:
    try:
        mixed = mixture(corpus, **weights)
    except ValueError as error:
        assert "leave epochs without a clip" in str(error)
        return
    plan = make(equal_clips(len(corpus)), mixture=mixed)
    copies = np.bincount(rows_of(plan, epoch), minlength=len(corpus))
    assert np.array_equal(copies, mixed.copies(epoch))
    assert all(sum(map(len, step)) for step in plan.epoch(epoch))
    for number, name in enumerate("abc"):
        weight = Fraction(str(weights.get(name, 1)))
        mine = copies[corpus == number]
        assert set(mine) <= {int(weight), -int(-weight // 1)}
        assert abs(mine.sum() - weight * len(mine)) < 1
        over_epochs = sum(mixed.copies(e) for e in range(weight.denominator))[corpus == number]
        assert set(over_epochs) <= {weight.numerator}


def test_the_mixture_decides_how_many_steps_an_epoch_has() -> None:
    corpus = np.repeat([0, 1], 400)
    assert make(equal_clips(800), mixture=mixture(corpus, a=2)).num_steps(0) == 150
    assert make(equal_clips(800), mixture=mixture(corpus, a=0)).num_steps(0) == 50
    with pytest.raises(ValueError, match=r"data\.mixture: the shards hold no corpus 'emodb'; they hold a, b, c"):
        mixture(corpus, emodb=1)


@given(
    st.integers(1, 80), st.integers(1, 80), st.sampled_from([0.001, 0.1, 0.2, 1 / 3, 0.5, 0.9]),
    st.sampled_from([0.5, 1, 2]), st.integers(1, 12),
)  # fmt: skip
@settings(deadline=None)
def test_replayed_clips_are_their_share_of_all_and_take_turns(
    num_own: int, num_replayed: int, share: float, weight: float, epochs: int
) -> None:
    """Beside m others an epoch has K = share m / (1 - share) of n, so E epochs have floor(K E), each clip K E / n."""
    try:
        mixed = replaying(num_own, num_replayed, share, b=weight)
    except ValueError as error:
        assert "leave epochs without a clip" in str(error)
        return
    plan = make(equal_clips(num_own + num_replayed), mixture=mixed)
    drawn = np.array([np.bincount(rows_of(plan, e), minlength=num_own + num_replayed) for e in range(epochs)])
    own, again, exact = drawn[:, :num_own], drawn[:, num_own:], Fraction(str(share))
    others = -(-num_own // 2) + Fraction(str(weight)) * (num_own // 2)  # the weight of b is not for what is replayed
    each = exact * others / (1 - exact)
    assert mixed.mean_clips == float(others + each)
    assert own.sum() == int(others * epochs)
    assert again.sum() == int(each * epochs)
    assert abs(again.sum(1) - float(each)).max() < 1
    turns = each * epochs / num_replayed
    assert set(again.sum(0)) <= {int(turns), -int(-turns // 1)}


def test_a_step_has_the_share_of_replayed_clips_in_expectation() -> None:
    plan = make(equal_clips(4800), clips_per_step=48, mixture=replaying(2400, 2400, 0.2))
    assert plan.num_steps(0) == 62  # of (2400 + 600) / 48 = 62.5
    replayed = np.array([[(rows >= 2400).sum() for rows in step] for step in plan.epoch(1)]).sum(1)
    assert replayed.sum() == 600
    assert replayed.std() < 1.3 * np.sqrt(48 * 0.2 * 0.8)  # as if each clip of a step were drawn with it


def test_nothing_to_replay_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.replay: its shards hold no clips; name another set"):
        replaying(10, 0, 0.2)


@pytest.mark.parametrize("weight", [1e-5, 6e-5])
def test_a_weight_that_would_be_rounded_to_nothing_or_up_is_refused(weight: float) -> None:
    corpus = np.repeat([0, 1], 4)
    with pytest.raises(ValueError, match=rf"data\.mixture: a: {weight:g} is less than once in 10,000 epochs, 0\.0001"):
        mixture(corpus, a=weight)
    assert mixture(corpus, a=1e-4).mean_clips > 4
    assert mixture(corpus, a=0).mean_clips == 4


def test_clips_that_are_left_out_are_in_no_epoch_and_no_share_counts_them() -> None:
    corpus, left_out = np.array([1] * 10 + [2] * 10, np.uint64), np.arange(20) % 5 == 0
    replayed = np.arange(20) >= 18
    mixed = Mixture(corpus, {"a": 1, "b": 2}, {"b": 0.5}, 3, replayed, 0.1, left_out=left_out)
    total = sum(mixed.copies(epoch) for epoch in range(10))
    assert not total[left_out].any() and (total[:10][~left_out[:10]] == 10).all()
    assert total[10:18].sum() == 6 * 5  # two of the eight are left out
    plain = Mixture(corpus, {"a": 1, "b": 2}, {}, 3, left_out=np.zeros(20, bool))
    assert (plain.copies(0) == 1).all() and plain.mean_clips == 20
