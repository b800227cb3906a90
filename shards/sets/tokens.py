"""Token counts of a shard set, for one tokenizer and chat template: what plans and planned losses are made of.

They lie beside the index, one file per shard, so that another tokenizer never touches a shard.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from shards.prompts import ChatTemplate
from shards.sample import MAX_MESSAGES, Continuation, Message
from shards.sets.index import Shard, decode_array, encode_array
from shards.sets.shard_set import ShardSet
from shards.sets.store import Store

TOKEN_COUNTS = np.dtype(
    [
        ("num_text_tokens", "<u4"),  # of all turns' words, which a teacher reads
        ("num_response_tokens", "<u4"),
        ("num_read_tokens", "<u4"),  # of turns that are words alone, which the student reads too
        ("num_earlier", "<u4"),  # messages before the last turn
    ]
)
_FILES_AT_ONCE = 8


def count_tokens(
    template: ChatTemplate, transcript: str, continuation: Continuation, messages: Sequence[Message] = ()
) -> tuple[int, int, int, int]:
    """One row of TOKEN_COUNTS; the response's end of turn is included."""
    response = template.response(continuation.text, continuation.finished)
    *earlier, last = (len(ids) for ids in template.encode_all([*(message.text for message in messages), transcript]))
    read = sum(length for length, message in zip(earlier, messages, strict=True) if message.audio is None)
    return sum(earlier) + last, len(response), read, len(messages)


def tokens_file(fingerprint: str, shard_name: str) -> str:
    """Where the counts of a shard lie, below the set's root."""
    return f"tokens/{fingerprint}/{shard_name}.npy"


def token_counts(shard_set: ShardSet, template: ChatTemplate) -> NDArray[np.void]:
    """TOKEN_COUNTS [len(shard_set)].

    The writer leaves those of its own tokenizer. For another they are counted once and kept beside the index; where
    that is read-only they are counted each time.
    """
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:  # a bucket takes its time for each
        stored = list(pool.map(lambda place: stored_counts(place[0], place[1], template.fingerprint), shard_set.shards))
    parts, first = [np.empty(0, TOKEN_COUNTS)], 0
    for (store, shard), counts in zip(shard_set.shards, stored, strict=True):
        if counts is None:
            counts = np.empty(shard.rows, TOKEN_COUNTS)
            for row, (utterance, continuation) in enumerate(shard_set.records(range(first, first + shard.rows))):
                assert continuation is not None
                counts[row] = count_tokens(template, utterance.text, continuation, utterance.messages)
            with contextlib.suppress(OSError):  # a read-only or full disk costs time, not correctness
                store.write(tokens_file(template.fingerprint, shard.name), encode_array(counts))
        parts.append(counts)
        first += shard.rows
    return np.concatenate(parts)


def decode_counts(data: bytes, num_rows: int) -> NDArray[np.void]:
    """TOKEN_COUNTS [num_rows] of a file. Raises ValueError when it holds something else."""
    counts = decode_array(data, TOKEN_COUNTS, num_rows)
    if counts["num_earlier"].max(initial=0) > MAX_MESSAGES:
        raise ValueError(f"a conversation of more than {MAX_MESSAGES} messages")
    return counts


def stored_counts(store: Store, shard: Shard, fingerprint: str) -> NDArray[np.void] | None:
    """Those that lie beside the index; None where there are none, or not such of this shard."""
    try:
        return decode_counts(store.read(tokens_file(fingerprint, shard.name)), shard.rows)
    except (FileNotFoundError, ValueError):
        return None
