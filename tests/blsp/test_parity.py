"""Equal to the authors' code, from weights in their layout. PARITY_DIR names another set (holding stage1/, stage2/)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from blsp.authors import import_authors
from tests.blsp.parity import ParitySet, joined

FIXTURES = Path(__file__).parents[1] / "fixtures" / "parity"
SETS = Path(os.environ.get("PARITY_DIR", FIXTURES))
CLOSE = 2e-4


@pytest.fixture(scope="module", params=["stage1", "stage2"])
def parity(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ParitySet:
    run = tmp_path_factory.mktemp("imported") / request.param
    import_authors(SETS / request.param, run)
    return ParitySet(SETS / request.param, run)


@pytest.mark.slow
def test_every_sample_comes_out_as_the_authors_code_has_it(parity: ParitySet) -> None:
    assert parity.samples
    worst: dict[str, float] = {}
    for sample in parity.samples:
        for name, difference in parity.differences(sample).items():
            worst[name] = max(worst.get(name, 0.0), difference)
    for name, difference in worst.items():
        print(f"{parity.folder.name}  {name:30}{difference:.1e}")
    assert {name: difference for name, difference in worst.items() if not difference <= CLOSE} == {}


def test_packed_together_the_samples_give_the_same_losses(parity: ParitySet) -> None:
    batches = [parity.batch(sample) for sample in parity.samples]
    together = joined(batches)
    counts = torch.tensor([len(sample["response"]) for sample in parity.samples], dtype=torch.float64)
    for loss, theirs, weights in (
        ("kl", "response_kl", counts), ("ce", "response_ce", counts), ("emotion", "input_er", torch.ones_like(counts)),
    ):  # fmt: skip
        stage = parity.stage(loss, kl_shift="authors")
        each = torch.tensor([sample["losses"][theirs] for sample in parity.samples], dtype=torch.float64)
        assert parity.loss(together, stage) == pytest.approx(float((each * weights).sum() / weights.sum()), abs=CLOSE)


def test_the_two_shifts_of_the_kl_are_two_losses(parity: ParitySet) -> None:
    batch = parity.batch(parity.samples[0])
    assert parity.loss(batch, parity.stage("kl")) != parity.loss(batch, parity.stage("kl", kl_shift="authors"))
