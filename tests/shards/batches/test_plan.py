from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.batches.mixture import Mixture
from shards.batches.plan import Plan
from shards.batches.sizes import COST_UNIT, Caps, CostWeights, Sizes

FIRST_STEP = [[6, 1, 2], [19, 5], [18, 8], [13, 11]]
HASH = "5ae50b10de5b0cd6"
Clips = list[tuple[int, int, int]]  # heard samples, tokens, response tokens of each
clips_lists: Any = st.lists(
    st.tuples(st.integers(3200, 480_000), st.integers(40, 400), st.integers(1, 40)), min_size=1, max_size=120
)


def sizes_of(clips: Clips) -> Sizes:
    heard, tokens, responses = np.array(clips, np.int64).reshape(-1, 3).T
    return Sizes(heard, tokens, tokens + 20, responses)


def equal_clips(n: int) -> Sizes:
    return sizes_of([(16000, 100, 10)] * n)


def drawn(n: int, kind: str, seed: int = 0) -> Sizes:
    """Durations as LibriSpeech's (1.4 to 17 s, mean 12), or mixed from 1 to 30 s (mean 6.5)."""
    random = np.random.default_rng(seed)
    librispeech, mixed = 16.5 - random.gamma(1.3, 3.6, n), random.lognormal(1.6, 0.75, n)
    seconds = np.clip(librispeech, 1.4, 17) if kind == "librispeech" else np.clip(mixed, 1, 30)
    return sizes_at(seconds, random)


def sizes_at(seconds: np.ndarray, random: np.random.Generator) -> Sizes:
    responses = random.integers(5, 49, len(seconds))
    text = (3.5 * seconds * random.normal(1, 0.2, len(seconds))).astype(np.int64)
    speech = np.ceil(6.25 * seconds).astype(np.int64)
    return Sizes((16000 * seconds).astype(np.int64), 50 + speech + responses, 50 + text + responses, responses)


def make(sizes: Sizes, **changes: Any) -> Plan:
    return Plan(sizes, **{"seed": 3, "clips_per_step": 8.0, "micro_batches": 4, "dataset_id": "d", **changes})


def mixture(corpus: np.ndarray, seed: int = 3, **weights: float) -> Mixture:
    return Mixture(corpus.astype(np.uint64), {"a": 0, "b": 1, "c": 2}, weights, seed)


def rows_of(plan: Plan, epoch: int) -> np.ndarray:
    return np.concatenate([rows for step in plan.epoch(epoch) for rows in step])


def held(plan: Plan, sizes: np.ndarray, epoch: int) -> np.ndarray:
    """What each micro-batch of the epoch holds, [steps, M]."""
    return np.array([[sizes[rows].sum() for rows in step] for step in plan.epoch(epoch)])


@given(clips_lists, st.floats(1, 50), st.integers(1, 9), st.integers(0, 5))
@settings(deadline=None)
def test_every_row_is_once_in_an_epoch_and_no_step_is_empty(
    clips: Clips, clips_per_step: float, micro_batches: int, epoch: int
) -> None:
    plan = make(sizes_of(clips), clips_per_step=clips_per_step, micro_batches=micro_batches)
    steps = plan.epoch(epoch)
    assert len(steps) == plan.num_steps(epoch)
    assert all(len(step) == micro_batches and sum(map(len, step)) > 0 for step in steps)
    assert np.array_equal(np.sort(rows_of(plan, epoch)), np.arange(len(clips)))


@given(clips_lists, st.integers(0, 2**32), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_a_step_is_the_same_whenever_it_is_asked_for(clips: Clips, seed: int, epoch: int) -> None:
    plan, again = make(sizes_of(clips), seed=seed), make(sizes_of(clips), seed=seed)
    for step in reversed(range(plan.num_steps(epoch))):  # resumed at `step`, nothing asked before
        assert all(map(np.array_equal, again.step(epoch, step), plan.epoch(epoch)[step]))


def test_an_order_once_planned_stays_that_order() -> None:
    """Runs resume after an upgrade of numpy: these numbers must never change."""
    plan = make(sizes_of([(16000 * (1 + i % 5), 100 + 7 * i, 10 + i % 3) for i in range(24)]))
    assert [rows.tolist() for rows in plan.step(0, 0)] == FIRST_STEP
    assert plan.hash == HASH


def test_epochs_and_seeds_differ() -> None:
    orders = [rows_of(make(equal_clips(64), seed=seed), epoch) for seed, epoch in ((3, 0), (3, 1), (4, 0))]
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])


@pytest.mark.parametrize(("clips_per_step", "micro_batches"), [(768, 24), (768, 48), (128, 16), (128, 24)])
@pytest.mark.parametrize(("kind", "most"), [("librispeech", 0.01), ("mixed", 0.015)])
def test_steps_and_micro_batches_cost_the_same(kind: str, most: float, clips_per_step: int, micro_batches: int) -> None:
    plan = make(drawn(40_000, kind), clips_per_step=clips_per_step, micro_batches=micro_batches)
    summary = plan.summary()
    assert summary.unused_mean < most / 4
    assert summary.unused_worst < 2 * most
    assert summary.step_cost_std < 0.01
    assert summary.clips_per_step_mean == pytest.approx(clips_per_step, rel=0.01)
    assert summary.clips_per_step_std < 0.03 * clips_per_step


def test_the_summary_is_of_the_plan() -> None:
    sizes = drawn(900, "mixed")
    plan = make(sizes, clips_per_step=50)
    summary = plan.summary(2)
    clips, costs = held(plan, np.ones(900), 2).sum(1), held(plan, sizes.costs(CostWeights()), 2)
    assert (summary.clips, summary.steps) == (900, plan.num_steps(2))
    assert (summary.clips_per_step_mean, summary.clips_per_step_std) == (clips.mean(), clips.std())
    assert (summary.clips_per_step_min, summary.clips_per_step_max) == (clips.min(), clips.max())
    assert summary.unused_mean == pytest.approx((1 - costs.mean(1) / costs.max(1)).mean())
    assert summary.largest_audio_s == held(plan, sizes.heard_samples, 2).max() / 16000
    assert summary.largest_tokens == held(plan, sizes.tokens, 2).max()
    assert summary.largest_response_tokens == held(plan, sizes.response_tokens, 2).max()
    assert f"in {summary.steps} steps of {clips.mean():.1f} ± {clips.std():.1f} clips" in str(summary)


caps_of: Any = st.builds(
    Caps,
    audio_s=st.none() | st.floats(30, 300),
    tokens=st.none() | st.integers(400, 3000),
    response_tokens=st.none() | st.integers(40, 400),
)


def works(sizes: Sizes, epochs: int, **changes: Any) -> bool:
    plan = make(sizes, **changes)
    try:
        plan.check(epochs)
    except ValueError:
        return False
    caps = changes["caps"]
    for epoch in range(epochs):
        for cap, each in (
            (caps.audio_s and caps.audio_s * 16000, sizes.heard_samples),
            (caps.tokens, sizes.tokens),
            (caps.response_tokens, sizes.response_tokens),
        ):
            assert cap is None or held(plan, each, epoch).max() <= cap
    return True


@given(clips_lists, caps_of, st.floats(1, 40), st.integers(1, 8))
@settings(deadline=None)
def test_caps_are_kept_or_the_number_that_works_is_named(
    clips: Clips, caps: Caps, clips_per_step: float, micro_batches: int
) -> None:
    sizes, epochs = sizes_of(clips), 3
    given_as = {"clips_per_step": clips_per_step, "micro_batches": micro_batches, "caps": caps}
    if works(sizes, epochs, **given_as):
        plan = make(sizes, **given_as)
        assert all(np.array_equal(np.sort(rows_of(plan, e)), np.arange(len(clips))) for e in range(epochs))
        assert all(sum(map(len, step)) for step in plan.epoch(0))
        return
    with pytest.raises(ValueError, match=r"^data\.caps\.\w+ = .* is too small: ") as refused:
        make(sizes, **given_as).check(epochs)
    message = str(refused.value)
    field = message.removeprefix("data.caps.").split()[0]
    wider = re.search(r"raise data\.micro_batches to (\d+)", message)
    assert wider and works(sizes, epochs, **{**given_as, "micro_batches": int(wider[1])}), message
    if higher := re.search(r"or the cap to (\d+)", message):
        raised = Caps(**{**vars(caps), field: int(higher[1])})
        assert works(sizes, epochs, **{**given_as, "caps": raised}), message


def test_an_epoch_that_nobody_checked_is_refused_as_the_check_would() -> None:
    random = np.random.default_rng(3)
    sizes = sizes_at(random.uniform(1, 12, 24), random)
    caps = Caps(audio_s=1.35 * float(sizes.heard_samples.sum()) / 16000 / 12)
    plan = next(p for seed in range(99) if (p := make(sizes, caps=caps, seed=seed)) and fit(p, 1) and not fit(p, 9))
    epoch = next(epoch for epoch in range(9) if not fit(plan, epoch + 1))
    plan.step(epoch - 1, 0)
    with pytest.raises(ValueError, match=r"data\.caps\.audio_s = \S+ is too small: micro-batches hold .*; raise data"):
        plan.step(epoch, 0)


def fit(plan: Plan, epochs: int) -> bool:
    try:
        plan.check(epochs)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("kind", ["librispeech", "mixed"])
def test_tight_caps_leave_the_costs_even(kind: str) -> None:
    sizes = drawn(20_000, kind)
    free = make(sizes, clips_per_step=768, micro_batches=24).summary()
    mean = free.clips / free.steps / 24
    audio_s = 1.08 * mean * float(sizes.heard_samples.mean()) / 16000
    response_tokens = int(1.08 * mean * sizes.response_tokens.mean())
    caps = Caps(audio_s=audio_s, response_tokens=response_tokens)
    capped = make(sizes, clips_per_step=768, micro_batches=24, caps=caps).summary()
    assert capped.largest_audio_s <= audio_s
    assert capped.largest_response_tokens <= response_tokens < free.largest_response_tokens
    assert capped.unused_mean < 0.01


def test_a_clip_alone_over_a_cap_is_refused() -> None:
    clips = [(16000, 100, 10), (16000 * 31, 100, 10)]
    with pytest.raises(
        ValueError, match=r"data\.caps\.audio_s = 30 is too small: 1 clips alone exceed it; raise it to 31"
    ):
        make(sizes_of(clips), caps=Caps(audio_s=30))


def test_a_cap_of_tokens_has_room_for_the_prompts_too() -> None:
    without = sizes_of([(16000, 100, 10)] * 60)
    sizes = replace(without, prompt_tokens=70)
    free, capped = (make(sizes, clips_per_step=12, caps=Caps(tokens=cap)).summary() for cap in (None, 470))
    assert free.largest_tokens == capped.largest_tokens == 3 * 100 + 70
    assert make(without, clips_per_step=12, caps=Caps(tokens=300)).summary().largest_tokens == 300
    with pytest.raises(ValueError, match=r"hold 370 on average and the largest clip 100; raise data\.micro_batches"):
        make(sizes, clips_per_step=12, caps=Caps(tokens=300)).check(1)
    with pytest.raises(ValueError, match=r"tokens = 160 is too small: 60 clips alone exceed it; raise it to 170"):
        make(sizes, caps=Caps(tokens=160))
    plans = [make(one, caps=Caps(tokens=470)) for one in (sizes, without)]
    assert plans[0].hash != plans[1].hash


def replaying(num_own: int, num_replayed: int, share: float, **weights: float) -> Mixture:
    """Own clips of the corpora a and b in turn, and then those to be replayed, all of b."""
    corpus = np.append(np.arange(num_own) % 2, np.ones(num_replayed, int)).astype(np.uint64)
    replayed = np.arange(num_own + num_replayed) >= num_own
    return Mixture(corpus, {"a": 0, "b": 1}, weights, 3, replayed, share)


def chi_square_z(steps: list[np.ndarray], category: np.ndarray) -> float:
    """How many standard deviations the chi-square of (step, category) is above what independence gives."""
    counts = np.array([np.bincount(category[rows], minlength=category.max() + 1) for rows in steps], float)
    expected = counts.sum(1, keepdims=True) * counts.sum(0) / counts.sum()
    degrees = (counts.shape[0] - 1) * (counts.shape[1] - 1)
    return float((((counts - expected) ** 2 / expected).sum() - degrees) / np.sqrt(2 * degrees))


def test_each_step_is_a_sample_of_the_whole_where_length_buckets_are_not() -> None:
    random = np.random.default_rng(5)
    n = 30_000
    emotion, speaker, corpus = random.integers(0, 5, n), random.integers(0, 60, n), random.integers(0, 3, n)
    rate = np.array([0.8, 0.9, 1.0, 1.15, 1.3])[emotion] * random.normal(1, 0.15, 60)[speaker]  # sad is slow
    seconds = np.clip(random.lognormal(1.4, 0.3, n) * np.array([0.9, 1, 1.1])[corpus] / rate, 1, 30)
    categories = {
        "emotion": emotion, "speaker": speaker, "corpus": corpus,
        "length": np.searchsorted(np.quantile(seconds, [0.25, 0.5, 0.75]), seconds),
    }  # fmt: skip
    plan = make(sizes_at(seconds, random), clips_per_step=128, micro_batches=16)
    planned = [np.concatenate(step) for step in plan.epoch(0)]
    # What others do against padding: clips of about one length, from one of 10 buckets, in a random order of steps.
    shuffled = [random.permutation(bucket) for bucket in np.array_split(np.argsort(seconds), 10)]
    bucketed = [part for bucket in shuffled for part in np.array_split(bucket, round(len(bucket) / 128))]
    for name, category in categories.items():
        assert abs(chi_square_z(planned, category)) < 3.5, name
        assert chi_square_z(bucketed, category) > 10, name


@given(st.integers(0, 500))
def test_a_global_step_has_one_place_and_a_small_state(global_step: int) -> None:
    plan = make(equal_clips(50))
    epoch, step = plan.locate(global_step)
    assert epoch * plan.num_steps(0) + step == global_step
    assert 0 <= step < plan.num_steps(epoch)
    written = json.dumps(plan.state(global_step))
    assert len(written.encode()) <= 512
    assert plan.global_step(json.loads(written)) == global_step


def test_the_state_of_another_plan_is_refused() -> None:
    state = make(equal_clips(50), seed=2**63).state(10**9)
    assert len(json.dumps(state).encode()) <= 512
    with pytest.raises(ValueError, match=r"the state is of plan [0-9a-f]{16} with seed \d+, this is plan"):
        make(equal_clips(50)).global_step(state)


def test_the_hash_changes_with_whatever_changes_the_order() -> None:
    sizes, corpus = equal_clips(50), np.zeros(50)
    changes: list[dict[str, Any]] = [
        {}, {"seed": 4}, {"clips_per_step": 9.0}, {"micro_batches": 5}, {"dataset_id": "e"},
        {"weights": CostWeights(token=2)}, {"caps": Caps(tokens=5000)}, {"mixture": mixture(corpus, a=2)},
        *({"mixture": replaying(*parts)} for parts in ((40, 10, 0.2), (40, 10, 0.1), (30, 20, 0.2))),
    ]  # fmt: skip
    hashes = {make(sizes, **change).hash for change in changes} | {make(sizes_of([(1, 99, 1)] * 50)).hash}
    assert len(hashes) == len(changes) + 1
    assert make(sizes).hash == make(equal_clips(50)).hash == make(sizes, mixture=mixture(corpus, a=1)).hash
    assert all(len(plan_hash) == 16 for plan_hash in hashes)


def test_costs_are_a_weighted_sum_of_seconds_and_tokens() -> None:
    weights = CostWeights(second=2.0, token=3.0, teacher_token=5.0, response_token=7.0)
    sizes = Sizes(*(np.array([value]) for value in (32000, 4, 6, 8)))
    assert (sizes.costs(weights) * COST_UNIT).tolist() == [2 * 2 + 3 * 4 + 5 * 6 + 7 * 8]


@pytest.mark.parametrize("change", [{"clips_per_step": 0.5}, {"micro_batches": 0}])
def test_impossible_sizes_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        make(equal_clips(5), **change)
    with pytest.raises(ValueError, match="no clips"):
        make(equal_clips(0))


A_MILLION = """
import sys, time
import numpy as np
from shards.batches.plan import Plan
from shards.batches.sizes import Sizes

random = np.random.default_rng(0)
ranges = (16000, 272000), (60, 200), (60, 150), (5, 49)
sizes = Sizes(*(random.integers(low, high, 1_000_000) for low, high in ranges))
spent_s = []
for epoch, step in ((0, 0), (7, 1301)):
    started_s = time.process_time()
    plan = Plan(sizes, dataset_id="d", seed=1, clips_per_step=768, micro_batches=48)
    assert sum(map(len, plan.step(epoch, step))) > 0
    spent_s.append(time.process_time() - started_s)
peak_kb = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(max(spent_s), peak_kb / 1024, "torch" in sys.modules)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_million_clips_are_planned_at_any_step_within_a_second_and_300_mb() -> None:
    ran = subprocess.run([sys.executable, "-c", A_MILLION], capture_output=True, text=True, check=True)
    spent_s, peak_mb, torch_is_loaded = ran.stdout.split()
    assert float(spent_s) < 1
    assert float(peak_mb) < 300
    assert torch_is_loaded == "False"
