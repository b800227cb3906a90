"""How much the tests marked `fuzz` try: the same 200 cases each time, or as many others as FUZZ_CASES says (10,000 in
`make fuzz`)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

F = TypeVar("F", bound=Callable[..., None])

_CASES = int(os.environ.get("FUZZ_CASES", "200"))
_settings = settings(
    max_examples=_CASES,
    deadline=None,
    derandomize="FUZZ_CASES" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


def fuzz(test: F) -> F:
    """Marks a test that takes what `given` draws."""
    marked: F = pytest.mark.fuzz(_settings(test))
    return marked


# What JSON can say, the odd among it: half characters, numbers beyond all types, empty names, depth.
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from([2**63, -(2**70), 10**400, "\ud800", "\0", "\x1b[2J", "../x", "/etc/passwd", "x" * 300])
)  # fmt: skip
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
) | st.integers(1, 1200).map(lambda depth: _nested(depth))


def _nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """`data` with some places overwritten, or cut, or something else altogether."""

    def change(changes: list[tuple[float, bytes]], end: float) -> bytes:
        content = bytearray(data[: max(1, int(end * len(data)))])
        for place, new in changes:
            at = int(place * len(content))
            content[at : at + len(new)] = new
        return bytes(content)

    shares = st.floats(0, 1, exclude_max=True)
    places = st.lists(st.tuples(shares, st.binary(max_size=6)), max_size=4)
    return st.builds(change, places, st.just(1.0) | shares) | st.binary(max_size=60)
