from __future__ import annotations

from pathlib import Path

import numpy as np

from shards.prompts import ChatTemplate
from shards.shard_set import ShardSet
from shards.tokens import token_counts


def test_tokens_are_counted_once_per_tokenizer(shard_set: ShardSet, template: ChatTemplate) -> None:
    counts = token_counts(shard_set, template)
    for row in (0, 7, 22):
        utterance, continuation = shard_set.record(row)
        response = template.response(continuation.text, continuation.finished)
        assert counts[row].tolist() == (len(template.encode(utterance.text)), len(response))
    (kept, *others) = sorted((Path(shard_set.url) / "tokens" / template.fingerprint).iterdir())
    assert len(others) == 5
    first = counts[:4]
    assert np.array_equal(np.load(kept), first)
    np.save(kept, np.roll(first, 1))
    assert np.array_equal(token_counts(shard_set, template)[:4], np.roll(first, 1))
    kept.write_bytes(b"damaged")
    assert np.array_equal(token_counts(shard_set, template), counts)
