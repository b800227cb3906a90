from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.sharding import Traffic, Weights, Zero, states, traffic

TENSORS = st.lists(st.integers(1, 5000), min_size=1, max_size=6)
WEIGHTS = st.builds(
    Weights,
    trained=st.lists(TENSORS, min_size=1, max_size=3),
    frozen=TENSORS,
    uncut=st.integers(0, 100),
    bytes_each=st.sampled_from([2, 4]),
)
RANKS = st.integers(1, 300)
ZERO = st.sampled_from([(1, False), (2, False), (3, False), (3, True)])


def padding(weights: Weights, ranks: int) -> int:
    """The most bytes by which rounding up makes a rank hold more."""
    tensors = sum(map(len, weights.trained)) + len(weights.frozen)
    return 16 * (tensors + 2 * ranks * len(weights.trained))


@settings(max_examples=20)
@given(WEIGHTS, RANKS, st.integers(2, 4), ZERO)
def test_more_ranks_never_hold_more_each(weights: Weights, ranks: int, times: int, cut: tuple[int, bool]) -> None:
    few, many = (states(weights, Zero(cut[0], n, cut[1]), accumulation=2) for n in (ranks, ranks * times))
    assert many.optimizer <= few.optimizer + padding(weights, ranks * times)
    if cut[0] != 2 or weights.bytes_each == 2:  # else gradients are kept tensor by tensor, wherever shares begin
        assert many.total <= few.total + padding(weights, ranks * times)


@settings(max_examples=20)
@given(WEIGHTS, RANKS)
def test_a_later_stage_never_holds_more(weights: Weights, ranks: int) -> None:
    first, second, third, cut = (
        states(weights, Zero(stage, ranks, partitioned), accumulation=4).weights
        for stage, partitioned in ((1, False), (2, False), (3, False), (3, True))
    )
    assert first == second >= third - padding(weights, ranks) >= cut - 2 * padding(weights, ranks)


@settings(max_examples=20)
@given(WEIGHTS, RANKS, ZERO)
def test_all_ranks_together_hold_one_optimizer(weights: Weights, ranks: int, cut: tuple[int, bool]) -> None:
    held = states(weights, Zero(cut[0], ranks, cut[1]), accumulation=2).optimizer * ranks
    whole = (12 * weights.num_trained) + 4 * len(weights.trained) * ranks
    assert whole <= held <= whole + 12 * (ranks * sum(map(len, weights.trained)) + 2 * ranks * len(weights.trained))


@settings(max_examples=20)
@given(WEIGHTS, ZERO)
def test_one_rank_holds_everything(weights: Weights, cut: tuple[int, bool]) -> None:
    held = states(weights, Zero(cut[0], 1, cut[1]), accumulation=1)
    whole = (weights.num_trained + weights.num_frozen) * weights.bytes_each
    assert whole <= held.weights <= whole + padding(weights, 1)
    assert held.optimizer >= 12 * weights.num_trained
    assert held.gradients >= weights.num_trained * weights.bytes_each


@settings(max_examples=20)
@given(WEIGHTS, RANKS, ZERO, st.integers(1, 9))
def test_every_gradient_travels_and_nothing_does_alone(
    weights: Weights, ranks: int, cut: tuple[int, bool], accumulation: int
) -> None:
    sent = traffic(weights, Zero(cut[0], ranks, cut[1]), accumulation, fetches=1, frozen_fetched=0)
    times = accumulation if cut[0] > 1 else 1
    assert sent.scattered + sent.reduced >= times * weights.num_trained * weights.bytes_each
    assert sent.on_the_wire(1) == 0 <= sent.on_the_wire(ranks)


def test_a_sum_for_all_costs_twice_what_a_share_for_each_does() -> None:
    assert Traffic(reduced=8).on_the_wire(4) == 2 * Traffic(scattered=8).on_the_wire(4) == 12


def test_a_setting_has_a_name() -> None:
    assert [str(Zero(2, 8)), str(Zero(3, 8)), str(Zero(3, 8, True))] == [
        "ZeRO-2", "ZeRO-3, frozen resident", "ZeRO-3, frozen partitioned"
    ]  # fmt: skip
