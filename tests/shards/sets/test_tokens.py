from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np

from shards.prompts import ChatTemplate
from shards.sets.shard_set import ShardSet
from shards.sets.tokens import token_counts


def test_tokens_are_counted_once_per_tokenizer(shard_set: ShardSet, template: ChatTemplate) -> None:
    counts = token_counts(shard_set, template)
    for row in (0, 7, 22):
        utterance, continuation = shard_set.record(row)
        response = template.response(continuation.text, continuation.finished)
        assert counts[row].tolist() == (len(template.encode(utterance.text)), len(response), 0, 0)
    (kept, *others) = sorted((Path(shard_set.url) / "tokens" / template.fingerprint).iterdir())
    assert len(others) == 5
    first = counts[:4]
    assert np.array_equal(np.load(kept), first)
    np.save(kept, np.roll(first, 1))
    assert np.array_equal(token_counts(shard_set, template)[:4], np.roll(first, 1))
    kept.write_bytes(b"damaged")
    assert np.array_equal(token_counts(shard_set, template), counts)


def test_another_tokenizer_or_template_gets_files_of_its_own_and_touches_nothing_else(
    shard_set: ShardSet, template: ChatTemplate, tokenizer: Any
) -> None:
    root = Path(shard_set.url)
    first = token_counts(shard_set, template)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}
    other_words, other_template = copy.deepcopy(tokenizer), copy.deepcopy(tokenizer)
    other_words.add_tokens(["Sentence number"])
    other_template.chat_template = tokenizer.chat_template.replace("<|im_end|>", "\n<|im_end|>")
    templates = [template, ChatTemplate(other_words), ChatTemplate(other_template)]
    assert len({each.fingerprint for each in templates}) == 3
    fewer = token_counts(shard_set, templates[1])
    assert (fewer["num_text_tokens"] < first["num_text_tokens"]).all()
    token_counts(shard_set, templates[2])
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    assert {path.name for path in (root / "tokens").iterdir()} == {each.fingerprint for each in templates}
    assert np.array_equal(token_counts(shard_set, template), first)
