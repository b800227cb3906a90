"""Token counts of a shard set, for one tokenizer and chat template: what plans and planned losses are made of.

They lie beside the index, one file per shard, so that another tokenizer never touches a shard.
"""

from __future__ import annotations

import contextlib

import numpy as np
from numpy.typing import NDArray

from shards.index import decode_array, encode_array
from shards.prompts import ChatTemplate
from shards.sample import Continuation, Utterance
from shards.shard_set import ShardSet

TOKEN_COUNTS = np.dtype([("num_text_tokens", "<u4"), ("num_response_tokens", "<u4")])


def count_tokens(template: ChatTemplate, utterance: Utterance, continuation: Continuation) -> tuple[int, int]:
    """Tokens of the transcript and of the response, end of turn included."""
    response = template.response(continuation.text, continuation.finished)
    return len(template.encode(utterance.text)), len(response)


def tokens_file(fingerprint: str, shard_name: str) -> str:
    """Where the counts of a shard lie, below the set's root."""
    return f"tokens/{fingerprint}/{shard_name}.npy"


def token_counts(shard_set: ShardSet, template: ChatTemplate) -> NDArray[np.void]:
    """TOKEN_COUNTS [len(shard_set)].

    The writer leaves those of its own tokenizer. For another they are counted once and kept beside the index; where
    that is read-only they are counted each time.
    """
    parts, first = [np.empty(0, TOKEN_COUNTS)], 0
    for store, shard in shard_set.shards:
        name = tokens_file(template.fingerprint, shard.name)
        try:
            counts = decode_array(store.read(name), TOKEN_COUNTS, shard.rows)
        except (OSError, ValueError):
            counts = np.empty(shard.rows, TOKEN_COUNTS)
            for row in range(shard.rows):
                utterance, continuation = shard_set.record(first + row)
                assert continuation is not None
                counts[row] = count_tokens(template, utterance, continuation)
            with contextlib.suppress(OSError):  # a read-only or full disk costs time, not correctness
                store.write(name, encode_array(counts))
        parts.append(counts)
        first += shard.rows
    return np.concatenate(parts)
