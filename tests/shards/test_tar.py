from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from shards.tar import sample_key


@given(st.lists(st.text(min_size=1), min_size=2, max_size=6, unique=True))
def test_keys_are_plain_and_unique(ids: list[str]) -> None:
    keys = [sample_key(utterance_id) for utterance_id in ids]
    assert len(set(keys)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,80}", key) for key in keys)


def test_a_key_can_be_recognised() -> None:
    assert sample_key("wav/03a01Fa").startswith("wav_03a01Fa-")
