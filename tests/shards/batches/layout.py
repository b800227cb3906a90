"""What is in a batch, and the same batch laid out without shared prompts."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from shards.batches.collate import Batch


def sequences(batch: Batch) -> list[tuple[list[int], list[bool]]]:
    """Token ids and speech mask of each student sequence, with the prefix that it goes on from."""
    ids, masks = batch.input_ids.split(batch.seq_lens), batch.speech_mask.split(batch.seq_lens)
    whole = [
        tuple(torch.cat([parts[before], parts[i]] if before >= 0 else [parts[i]]).tolist() for parts in (ids, masks))
        for i, before in enumerate(batch.prefix_of)
    ]
    return whole[len(whole) - len(batch.ids) :]


def apart(batch: Batch) -> Batch:
    """The same batch with every sequence whole: no prompt is shared."""
    order, place, lengths = _whole(batch.seq_lens, batch.prefix_of)
    text_order, text_place, text_lengths = _whole(batch.text_seq_lens, batch.text_prefix_of)
    return replace(
        batch, input_ids=batch.input_ids[order], speech_mask=batch.speech_mask[order],
        position_ids=batch.position_ids[order], seq_lens=lengths, prefix_of=[-1] * len(lengths), rows=place[batch.rows],
        text_input_ids=batch.text_input_ids[text_order], text_position_ids=batch.text_position_ids[text_order],
        text_seq_lens=text_lengths, text_prefix_of=[-1] * len(text_lengths), text_rows=text_place[batch.text_rows],
    )  # fmt: skip


def _whole(lengths: list[int], prefix_of: list[int]) -> tuple[Tensor, Tensor, list[int]]:
    """Where each position of the whole sequences lies in the pack, where each own position of the pack lies among them,
    and the sequences' lengths."""
    pieces = torch.arange(sum(lengths)).split(lengths)
    shared = set(prefix_of)
    groups = [
        (pieces[before], pieces[i]) if before >= 0 else (pieces[i],)
        for i, before in enumerate(prefix_of)
        if i not in shared
    ]
    order = torch.cat([piece for group in groups for piece in group])
    place = torch.zeros(sum(lengths), dtype=torch.int64)
    place[order] = torch.arange(len(order))  # a shared position's is one of several; no row is there
    return order, place, [sum(map(len, group)) for group in groups]
