"""The training benchmark on a tiny model: every row is measured, and what it counts is right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.bench.data.timing import Spread
from tests.bench.train import real_size, rows, tables
from tests.bench.train.arithmetic import Way, llm_weights, step_flops
from tests.bench.train.counting import cost
from tests.bench.train.rows import WAYS, Measured
from tests.bench.train.shapes import SHAPES
from tests.bench.train.workload import STAGE_1, Lengths, clips, lengths

LARGE = SHAPES["large"]
# 10 s: 63 speech tokens between 25 and 5 of prompt, 30 words, 36 tokens of response.
TEN_SECONDS = Lengths(samples=(160_000,), speech=(63,), transcript=(30,), response=(36,), prefix=25, suffix=5)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are done before a second thread has woken up."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> rows.Step:
    return rows.Step(SHAPES["tiny"], tmp_path_factory.mktemp("step"), durations_s=(1.5, 2.5))


@pytest.fixture(scope="module")
def measured(step: rows.Step) -> list[Measured]:
    return rows.measure(step, rounds=1)


def test_every_row_has_the_same_loss_and_its_own_cost(measured: list[Measured]) -> None:
    assert [row.name for row in measured] == list(WAYS)
    assert all(row.off is None or row.off <= tables.CLOSE for row in measured)
    assert sum(row.off is None for row in measured) == 2  # the first, and the first with another window
    first, *_, last = measured
    assert last.flops < first.flops / 3
    assert last.kept_bytes < first.kept_bytes / 3


def test_the_formula_counts_what_torch_counts(measured: list[Measured]) -> None:
    for row in measured:
        assert row.flops_by_formula == pytest.approx(row.flops, rel=0.03), row.name


def test_lengths_are_those_of_the_models_own_batch(step: rows.Step) -> None:
    assert step.lengths.student == step.apart.seq_lens
    assert step.lengths.teacher == step.apart.text_seq_lens
    assert [step.lengths.prefix] == step.live.seq_lens[:1] == step.live.text_seq_lens[:1]
    assert sum(step.lengths.response) == len(step.live.targets)
    ten = lengths(clips([10.0], STAGE_1))
    assert ten.speech == TEN_SECONDS.speech
    assert (ten.transcript, ten.response[0] <= 48) == ((30,), True)


def test_real_size_is_what_is_known_of_it() -> None:
    assert llm_weights(LARGE.llm) == pytest.approx(6.53e9, rel=0.01)  # Qwen2.5-7B without embeddings and head
    padded = step_flops(LARGE, TEN_SECONDS, Way(window="30s", padded=True, all_logits=True, shared_prefix=False))
    assert padded.encoder == pytest.approx(2.26e12, rel=0.02)  # Whisper-large-v2's encoder over 30 s
    exact = step_flops(LARGE, TEN_SECONDS, Way(shared_prefix=False))
    assert exact.teacher == pytest.approx(2 * 6.53e9 * 96, rel=0.02)
    assert exact.student == pytest.approx(4 * 6.53e9 * 129, rel=0.02)
    assert exact.head == 3 * 2 * 152_064 * 3584 * 36
    again = step_flops(LARGE, TEN_SECONDS, Way(shared_prefix=False, checkpointing=True))
    assert again.total - again.recomputed == exact.total - exact.recomputed
    all_but_the_last_map = 6.53e9 - 28 * 3584 * 18_944
    assert again.recomputed - exact.recomputed == pytest.approx(2 * all_but_the_last_map * 129, rel=0.02)


def test_one_linear_map_is_counted_and_its_memory_too() -> None:
    frozen = nn.Linear(8, 16, bias=False).requires_grad_(False)
    x = torch.randn(4, 8, requires_grad=True)
    counted = cost(lambda: frozen(x).relu().exp().sum(), frozen.parameters())
    assert counted.flops == 2 * (2 * 4 * 8 * 16)  # forward, and the gradient of x
    assert counted.kept_bytes == 2 * 4 * 16 * 4  # what relu and exp give


def test_a_table_says_whether_the_targets_are_met() -> None:
    def row(name: str, faster: float, kept: int, off: float | None) -> Measured:
        return Measured(
            name, Spread(1, 1, 1), Spread(2, 2, 2), Spread(faster, faster, faster), kept, 100, 100.0, 0.5, off
        )

    met = tables.savings([row("first", 1, 100, None), row("all", 5.5, 20, 1e-6)], {})
    assert (met.count(": met"), met.count("NOT MET")) == (3, 0)
    missed = tables.savings([row("first", 1, 100, None), row("all", 4.9, 21, 2e-4)], {})
    assert missed.count("NOT MET") == 3


def test_the_arithmetic_has_every_row_for_each_length() -> None:
    found = tables.per_clip(LARGE)
    assert [row["name"] for row in found] == [*WAYS, *WAYS]
    ratios = {seconds: [row["all"] for row in found if row["clip_s"] == seconds] for seconds in tables.CLIPS_S}
    for values in ratios.values():
        assert values[0] / values[-2] < 3  # nobody mistakes the small model's ratio for this one
    assert "| clips of 10 s |" in tables.arithmetic(found, LARGE)


@pytest.mark.slow
def test_every_training_of_real_size_runs_tiny_on_a_cpu(tmp_path: Path) -> None:
    trained = real_size.measure(SHAPES["tiny"], tmp_path, torch.device("cpu"), num_clips=1)
    assert [row.name for row in trained] == [training.name for training in real_size.TRAININGS]
    assert all(row.audio_h_per_h > 0 and row.mfu is None and row.peak_bytes is None for row in trained)
    table = tables.throughput(trained, SHAPES["tiny"], torch.device("cpu")).splitlines()
    assert table[2].startswith("| audio hours per GPU hour |")
