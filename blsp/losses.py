"""The three losses, as sums over rows: the engine divides by the step's planned counts.

R response rows, D hidden width, V vocabulary. Logits exist only for the rows that a loss needs and only one chunk at
a time, forward and backward: `lm_head` runs inside a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

_ROWS_PER_CHUNK = 512


@dataclass
class Losses:
    """Sums over one micro-batch, and the counts they belong to. `total` is what is differentiated."""

    total: Tensor
    ce_sum: Tensor
    kl_sum: Tensor
    num_rows: Tensor
    emotion_sum: Tensor
    num_correct: Tensor
    num_labelled: Tensor

    def detached(self) -> Tensor:
        """All fields as one float64 vector, in declaration order."""
        return torch.stack([getattr(self, field.name).detach().double() for field in fields(self)])


def _chunked(function: object, head: nn.Module, hidden: Tensor, *rows: Tensor) -> Tensor:
    total = hidden.new_zeros((), dtype=torch.float32)
    for pieces in zip(*(tensor.split(_ROWS_PER_CHUNK) for tensor in (hidden, *rows)), strict=True):
        total = total + checkpoint(function, head, *pieces, use_reentrant=False)
    return total


def _ce_rows(head: nn.Module, hidden: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    return (functional.cross_entropy(head(hidden).float(), targets, reduction="none") * weight).sum()


def continuation_ce(head: nn.Module, hidden: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Sum of weight * -log p(target). hidden [R, D] predicts targets [R]; weight [R]."""
    return _chunked(_ce_rows, head, hidden, targets, weight)


def continuation_kl(
    head: nn.Module, hidden: Tensor, teacher_hidden: Tensor, weight: Tensor, temperature: float
) -> Tensor:
    """Sum of weight * KL(teacher || student), both at `temperature`, in float32, without the factor T^2 (as the
    authors; arXiv 2406.03872, eq. 1). hidden and teacher_hidden [R, D] predict the same response tokens."""

    def kl_rows(head: nn.Module, hidden: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
        student_log = functional.log_softmax(head(hidden).float() / temperature, -1)
        teacher_log = functional.log_softmax(head(teacher).float() / temperature, -1)
        rows = functional.kl_div(student_log, teacher_log, log_target=True, reduction="none").sum(-1)
        return (rows * weight).sum()

    return _chunked(kl_rows, head, hidden, teacher_hidden, weight)


def emotion_ce(logits: Tensor, emotion: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of -log p(emotion), correct clips, labelled clips. logits [n, 5]; emotion [n], -100 for none."""
    labelled = emotion >= 0
    loss = functional.cross_entropy(logits.float(), emotion, ignore_index=-100, reduction="sum")
    correct = ((logits.argmax(-1) == emotion) & labelled).sum()
    return loss, correct, labelled.sum()
