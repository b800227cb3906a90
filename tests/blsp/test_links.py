"""Whose link is slow: arithmetic on what each way took. A link that is slow in truth is in test_parts.py."""

from __future__ import annotations

import pytest
import torch

from blsp import links
from blsp.links import Communication, Links, SlowLink, Way, rounds, slow_link

Seconds = dict[Way, float]


@pytest.mark.parametrize("world", range(2, 10))
def test_each_rank_sends_to_both_neighbours_once_and_never_does_two_things_at_a_time(world: int) -> None:
    plan = rounds(world)
    ways = [way for ways in plan for way in ways]
    neighbours = {(rank, (rank + step) % world) for rank in range(world) for step in (1, world - 1)}
    assert sorted(ways) == sorted(neighbours)
    assert all(len({rank for way in ways for rank in way}) == 2 * len(ways) for ways in plan)


def ways(world: int, slow: Seconds) -> Seconds:
    return {way: slow.get(way, 0.001) for ways in rounds(world) for way in ways}


def test_a_slow_way_is_due_to_its_sender_unless_only_ways_to_its_receiver_are_slow() -> None:
    alone = ["a"] * 4
    assert slow_link(ways(4, {}), alone) is None
    assert slow_link(ways(4, {(1, 2): 0.09, (1, 0): 0.1}), alone) == SlowLink((1, 0), 0.1, 0.001, 1)
    assert slow_link(ways(4, {(1, 2): 0.09, (3, 2): 0.1}), alone) == SlowLink((3, 2), 0.1, 0.001, 2)
    assert slow_link(ways(2, {(1, 0): 0.1}), ["a", "b"]) == SlowLink((1, 0), 0.1, 0.001, 1)


def test_ways_between_hosts_are_beside_each_other_and_a_host_is_one_end() -> None:
    two = ["a", "a", "b", "b"]
    assert slow_link(ways(4, dict.fromkeys([(1, 2), (2, 1), (3, 0), (0, 3)], 0.02)), two) is None
    assert slow_link(ways(4, {(1, 2): 0.02, (2, 1): 0.02, (0, 3): 0.2, (3, 0): 0.02}), two) == SlowLink(
        (0, 3), 0.2, 0.02, 0
    )
    three = ["a", "a", "b", "b", "c", "c"]
    found = slow_link(ways(6, {(1, 2): 0.3, (4, 3): 0.29}), three)  # both into b
    assert found is not None
    assert three[found.rank] == "b"
    found = slow_link(ways(6, {(2, 1): 0.3, (3, 4): 0.29}), three)  # both out of b
    assert found is not None
    assert three[found.rank] == "b"


@pytest.mark.parametrize(("seconds", "slow"), [(0.0029, False), (0.0031, True)])
def test_three_times_as_long_is_slow(seconds: float, slow: bool) -> None:
    assert (slow_link(ways(3, {(0, 1): seconds}), ["a"] * 3) is not None) == slow


def test_a_link_costs_what_passes_it() -> None:
    link = SlowLink((0, 1), 0.0511, 0.0011, 0)
    assert link.costs_s(80 * 2**20, 4) == pytest.approx(0.05 * 80 * 3 / 4)


def step(wait_s: float, num_bytes: int = 2**20) -> Communication:
    return Communication(wait_s, num_bytes, 0.2)


def test_a_word_is_said_once_and_looking_takes_half_a_per_cent(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowLink((1, 0), 0.1204, 0.0004, 1)
    looks = [slow, slow, slow, None, None, None]
    watch = Links(torch.device("cpu"))

    def tried(self: Links) -> tuple[SlowLink | None, list[str]]:
        self._took_s, self._since_s = 0.05, 0.0
        return looks.pop(0), ["a", "b"]

    monkeypatch.setattr(links.Links, "_tried", tried)
    assert watch.look(step(0.01), 10) == [], "5 % of a step is not worth a look"
    assert watch.look(step(0.05), 10) == [
        "rank 1 (on b) is slow in communication: its link costs about 60 ms of a step's 200 ms; "
        "1 MiB from rank 1 to rank 0 takes 120 ms, elsewhere 0.4 ms"
    ]
    assert watch.look(step(0.05), 49) == [], "too soon"
    assert len(looks) == 5
    assert watch.look(step(0.05), 2) == [], "the same again"
    assert watch.look(step(0.05, 2**16), 50) == [], "so few bytes that it does not matter"
    assert watch.look(step(0.05), 50) == [], "alike, and not the most of a step"
    said = "communication takes at least 150 ms of a step's 200 ms, and no rank's link is to blame"
    assert watch.look(step(0.15), 50) == [said]
    assert watch.look(step(0.15), 50) == []
    assert looks == []
