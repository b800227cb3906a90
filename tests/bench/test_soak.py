"""A short soak; `make soak` runs the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.soak import soak


@pytest.mark.slow
def test_a_run_full_of_faults_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path) -> None:
    told = soak(tmp_path, faults=3, seed=3)
    assert told["faults"] == 3 and told["starts"] > 1, told
    assert told["weights are equal"] and told["losses are equal"], told
