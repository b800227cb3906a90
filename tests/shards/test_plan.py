from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.plan import CostWeights, Plan, sample_costs

costs_lists = st.lists(st.floats(1, 1000), min_size=1, max_size=120).map(np.array)


def make(costs: np.ndarray, **changes: object) -> Plan:
    settings = {"seed": 3, "clips_per_step": 8.0, "micro_batches": 4, "dataset_id": "d", **changes}
    return Plan(costs, **settings)  # type: ignore[arg-type]


@given(costs_lists, st.floats(1, 50), st.integers(1, 9), st.integers(0, 5))
@settings(deadline=None)
def test_every_row_is_once_in_an_epoch_and_no_step_is_empty(
    costs: np.ndarray, clips_per_step: float, micro_batches: int, epoch: int
) -> None:
    plan = make(costs, clips_per_step=clips_per_step, micro_batches=micro_batches)
    steps = plan.epoch(epoch)
    assert len(steps) == plan.num_steps(epoch)
    assert all(len(step) == micro_batches and sum(map(len, step)) > 0 for step in steps)
    rows = np.concatenate([rows for step in steps for rows in step])
    assert np.array_equal(np.sort(rows), np.arange(len(costs)))


@given(costs_lists, st.integers(0, 2**32), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_a_step_is_the_same_whenever_it_is_asked_for(costs: np.ndarray, seed: int, epoch: int) -> None:
    plan, again = make(costs, seed=seed), make(costs, seed=seed)
    for step in reversed(range(plan.num_steps(epoch))):  # resumed at `step`, nothing asked before
        assert all(map(np.array_equal, again.step(epoch, step), plan.epoch(epoch)[step]))


def test_epochs_and_seeds_differ() -> None:
    costs = np.ones(64)
    orders = [
        np.concatenate([np.concatenate(step) for step in make(costs, seed=seed).epoch(epoch)])
        for seed, epoch in ((3, 0), (3, 1), (4, 0))
    ]
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])


def test_steps_and_micro_batches_cost_the_same() -> None:
    random = np.random.default_rng(0)
    costs = sample_costs(
        random.integers(16000, 480000, 20000), random.integers(3, 60, 20000), random.integers(5, 49, 20000)
    )
    plan = make(costs, clips_per_step=768, micro_batches=24)
    sums = np.array([[costs[rows].sum() for rows in step] for step in plan.epoch(0)])
    assert plan.num_steps(0) == 26
    assert np.ptp(sums.sum(1)) < 0.01 * sums.sum(1).mean()
    assert (sums.max(1) / sums.mean(1)).max() < 1.02


@given(st.integers(0, 500))
def test_a_global_step_has_one_place(global_step: int) -> None:
    plan = make(np.ones(50))
    epoch, step = plan.locate(global_step)
    assert epoch * plan.num_steps(0) + step == global_step
    assert 0 <= step < plan.num_steps(epoch)


def test_the_hash_changes_with_whatever_changes_the_order() -> None:
    costs = np.ones(50)
    changes: list[dict[str, object]] = [
        {}, {"seed": 4}, {"clips_per_step": 9.0}, {"micro_batches": 5}, {"dataset_id": "e"},
    ]  # fmt: skip
    hashes = {make(costs, **change).hash for change in changes} | {make(2 * costs).hash}
    assert len(hashes) == len(changes) + 1
    assert make(costs).hash == make(costs.copy()).hash
    assert all(len(plan_hash) == 16 for plan_hash in hashes)


def test_costs_are_a_weighted_sum_of_seconds_and_tokens() -> None:
    weights = CostWeights(second=2.0, text_token=3.0, response_token=5.0, clip=7.0)
    costs = sample_costs(np.array([32000], np.uint32), np.array([4], np.uint32), np.array([6], np.uint32), weights)
    assert costs.tolist() == [7 + 2 * 2 + 3 * 4 + 5 * 6]


@pytest.mark.parametrize("change", [{"clips_per_step": 0.5}, {"micro_batches": 0}])
def test_impossible_sizes_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        make(np.ones(5), **change)
    with pytest.raises(ValueError, match="no clips"):
        make(np.ones(0))


def test_a_million_clips_are_planned_in_seconds() -> None:
    plan = make(np.random.default_rng(0).uniform(1, 30, 1_000_000), clips_per_step=768, micro_batches=48)
    assert sum(map(len, plan.step(7, plan.num_steps(7) - 1))) > 0
