from __future__ import annotations

import pytest

from shards.pipeline.actors import _num_llm_actors


def test_a_cluster_that_has_lost_gpus_goes_on_with_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert _num_llm_actors(16, 8, hosts_may_go=True) == 8
    assert "llm_actors = 16, but the hosts that are there have 8 GPUs" in capsys.readouterr().err
    assert _num_llm_actors(16, 16, hosts_may_go=True) == 16
    assert _num_llm_actors(2, 0, hosts_may_go=True) == 2
    assert capsys.readouterr().err == ""


def test_more_llm_actors_than_gpus_of_a_cluster_that_stays_are_refused() -> None:
    with pytest.raises(ValueError, match="llm_actors = 16, but Ray sees 8 GPUs; lower llm_actors to 8"):
        _num_llm_actors(16, 8, hosts_may_go=False)
