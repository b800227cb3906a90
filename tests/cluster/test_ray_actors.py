from __future__ import annotations

import pytest

from cluster.ray_actors import number_that_fits


def test_a_cluster_that_has_lost_gpus_goes_on_with_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert number_that_fits("llm_actors", 16, 8, "GPUs", hosts_may_go=True) == 8
    assert "llm_actors = 16, but the hosts that are there have 8 GPUs" in capsys.readouterr().err
    assert number_that_fits("llm_actors", 16, 16, "GPUs", hosts_may_go=True) == 16
    assert capsys.readouterr().err == ""


def test_more_actors_than_gpus_of_a_cluster_that_stays_are_refused() -> None:
    with pytest.raises(ValueError, match="llm_actors = 16, but Ray sees 8 GPUs; lower llm_actors to 8"):
        number_that_fits("llm_actors", 16, 8, "GPUs", hosts_may_go=False)
