from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cluster.choice import at, best, choose
from cluster.forecast import Job, forecast, memory, most_that_fits, step_traffic, ways
from cluster.machines import FABRICS, GPUS, GPUS_PER_HOST
from cluster.sharding import Weights, Zero

A100, HDR, SLOW = GPUS["a100-80"], FABRICS["8xhdr"], FABRICS["1x100gb"]
# About a 7 B LLM with Whisper-large-v2, 1 % of it in training.
SEVEN_B = Job(
    weights=Weights(trained=[[41_000_000, 41_000_000]], frozen=[8_000_000] * 1000, uncut=2_000_000, bytes_each=2),
    activation_bytes=22e9, again_bytes=0, logit_bytes=3e9, most_logit_bytes=3e9, flops=74e12, micro_batches=64,
    frozen_fetched=24_000_000_000, max_live=1_000_000_000, prefetched=250_000_000, bucket=50_000_000,
    launch_s=0.1, overlapping=frozenset({3}),
)  # fmt: skip
JOBS = st.builds(
    Job,
    weights=st.builds(
        Weights,
        trained=st.lists(st.lists(st.integers(1000, 10**8), min_size=1, max_size=4), min_size=1, max_size=3),
        frozen=st.lists(st.integers(1000, 10**9), min_size=1, max_size=4),
        uncut=st.integers(0, 10**6),
        bytes_each=st.just(2),
    ),
    activation_bytes=st.floats(1e6, 1e11), again_bytes=st.floats(0, 1e9), logit_bytes=st.floats(1e6, 1e10),
    most_logit_bytes=st.just(1e10), flops=st.floats(1e9, 1e15), micro_batches=st.integers(1, 512),
    frozen_fetched=st.integers(1000, 10**11), max_live=st.just(10**9), prefetched=st.just(10**8),
    bucket=st.just(10**7), launch_s=st.floats(0, 1), overlapping=st.frozensets(st.sampled_from([1, 2, 3])),
)  # fmt: skip
RANKS = st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128, 256])
SETTINGS = st.sampled_from(list(ways(1)))
ROUNDING = 1e5  # bytes
_ADDED_UP = 1  # byte: what is gone from one part and comes to another is rounded in each


@settings(max_examples=20)
@given(JOBS, RANKS, SETTINGS)
def test_more_gpus_never_need_more_memory_each(job: Job, ranks: int, zero: Zero) -> None:
    assume(ranks > 1)  # one gathers nothing
    assert memory(job, at(zero, 2 * ranks)).total <= memory(job, at(zero, ranks)).total + ROUNDING


@settings(max_examples=20)
@given(JOBS, RANKS, SETTINGS, st.floats(0, 3), st.floats(0, 3))
def test_larger_micro_batches_never_need_less(job: Job, ranks: int, zero: Zero, one: float, other: float) -> None:
    small, large = (memory(job, at(zero, ranks), size).total for size in sorted((one, other)))
    assert small <= large + _ADDED_UP


@settings(max_examples=20)
@given(JOBS, RANKS, SETTINGS)
def test_what_fits_fits_and_no_more(job: Job, ranks: int, zero: Zero) -> None:
    most = most_that_fits(job, at(zero, ranks), A100)
    if most:
        assert memory(job, at(zero, ranks), most).total <= A100.memory_bytes
        assert memory(job, at(zero, ranks), most * 1.01).total > A100.memory_bytes * 0.999 or most > 1e5
    else:
        assert memory(job, at(zero, ranks), 1e-3).total > A100.memory_bytes * 0.99


@settings(max_examples=20)
@given(JOBS, RANKS, SETTINGS)
def test_a_quicker_fabric_is_never_slower(job: Job, ranks: int, zero: Zero) -> None:
    slow, quick = (forecast(job, at(zero, ranks), A100, fabric) for fabric in (SLOW, HDR))
    assert (slow is None) == (quick is None) == (ranks > job.micro_batches)
    if slow is not None and quick is not None:
        assert quick.step_s <= slow.step_s
        assert 0 < slow.busy <= quick.busy <= 1 + 1e-9


@settings(max_examples=20)
@given(JOBS)
def test_partitioned_weights_need_less_memory_and_more_network(job: Job) -> None:
    whole, cut = Zero(3, 8), Zero(3, 8, partitioned=True)
    assert memory(job, cut).weights < memory(job, whole).weights
    assert step_traffic(job, cut).gathered > step_traffic(job, whole).gathered


def test_nvlink_joins_one_host() -> None:
    assert FABRICS["nvlink"].rate(A100, GPUS_PER_HOST) == HDR.rate(A100, GPUS_PER_HOST) == 240e9
    assert FABRICS["nvlink"].rate(A100, GPUS_PER_HOST + 1) == 0
    assert HDR.rate(A100, 16) == 160e9


def test_weights_that_fit_stay_whole() -> None:
    asked = [Zero(3, 1), Zero(3, 1, partitioned=True)]
    found = choose(SEVEN_B, A100, HDR, asked)
    assert found is not None
    assert found.chosen.zero == Zero(3, 64)
    assert "data.micro_batches = 64" in found.limit
    small = choose(replace(SEVEN_B, activation_bytes=30e9), GPUS["a100-40"], HDR, asked)
    assert small is not None
    assert all(row.zero.partitioned for row in small.rows)


def test_gpus_that_wait_for_the_network_are_waste() -> None:
    found = choose(replace(SEVEN_B, activation_bytes=60e9), A100, SLOW, [Zero(3, 1, partitioned=True)])
    assert found is not None
    assert found.chosen.gpus == GPUS_PER_HOST
    assert "more are waste: with 16," in found.limit and "waiting for the network" in found.limit


def test_gpus_without_a_micro_batch_are_waste() -> None:
    found = choose(replace(SEVEN_B, micro_batches=17), A100, HDR, [Zero(3, 1)])
    assert found is not None
    assert found.chosen.gpus == 8
    assert "has no micro-batch: data.micro_batches = 17" in found.limit


def test_gpus_that_start_more_kernels_than_they_work_are_waste() -> None:
    work_s = SEVEN_B.work_s(A100)
    found = choose(replace(SEVEN_B, micro_batches=128, launch_s=2 * work_s), A100, HDR, [Zero(3, 1)])
    assert found is not None
    assert found.chosen.gpus == 64
    assert found.chosen.busy == pytest.approx(0.5)
    assert found.chosen.step_s == pytest.approx(2 * 2 * work_s)
    rarely = choose(replace(SEVEN_B, micro_batches=60, launch_s=2 * work_s), A100, HDR, [Zero(3, 1)])
    assert rarely is not None
    assert rarely.chosen.gpus == 24
    assert "start kernels for longer than they compute" in rarely.limit


def test_what_travels_meanwhile_is_hidden_in_every_stage_alike() -> None:
    for stage in (1, 2, 3):
        hidden, waited = (
            forecast(replace(SEVEN_B, overlapping=stages), Zero(stage, 16), A100, SLOW)
            for stages in (frozenset({stage}), frozenset[int]())
        )
        assert hidden is not None and waited is not None
        assert hidden.step_s == max(hidden.compute_s, hidden.network_s)
        assert waited.step_s == waited.compute_s + waited.network_s


def test_nothing_is_chosen_of_what_does_not_fit() -> None:
    assert choose(replace(SEVEN_B, activation_bytes=90e9), A100, HDR, [Zero(3, 1)]) is None


def test_zero_1_is_chosen_in_bfloat16_only_where_it_is_asked_for() -> None:
    found = best(SEVEN_B, 8, A100, HDR, [Zero(2, 8)])
    assert found is not None and found.zero == Zero(2, 8)
    found = best(SEVEN_B, 8, A100, HDR, [Zero(1, 8)])
    assert found is not None and found.zero == Zero(1, 8)


def test_float32_is_as_much_slower_as_the_card_is() -> None:
    whole = replace(SEVEN_B, weights=replace(SEVEN_B.weights, bytes_each=4))
    fast, slow = (forecast(job, Zero(3, 8), A100, HDR) for job in (SEVEN_B, whole))
    assert fast is not None and slow is not None
    assert slow.compute_s == pytest.approx(fast.compute_s * 312 / 19.5)


def test_what_an_update_needs_counts_where_it_is_more() -> None:
    little = replace(SEVEN_B, activation_bytes=0, logit_bytes=0, most_logit_bytes=0)
    assert memory(little, Zero(3, 1)).update == pytest.approx(3 * 4 * SEVEN_B.weights.num_trained, rel=1e-6)
    assert memory(SEVEN_B, Zero(3, 1)).update == 0
