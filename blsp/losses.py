"""The three losses: row by row, then as sums of each sample, which the engine divides by the step's planned counts.

R response rows, D hidden width, V vocabulary. Logits exist only for the rows that a loss needs and only one chunk at
a time; while they are there the gradient of the chunk's hidden rows is computed too: `lm_head`, which is frozen, runs
in the forward pass alone. Everything after the logits is in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from shards.sample import EMOTIONS

Head = Callable[[Tensor], Tensor]  # hidden states [R, D] -> logits [R, V]

_ROWS_PER_CHUNK = 512
_NO_LOGIT = -1e30


@dataclass
class Losses:
    """What one micro-batch of m samples says. `total` is what is differentiated; all else is [m] and float64: sums
    over the rows of each sample, and the counts they belong to.

    `end` is the position that predicts the end of the turn, one in each finished response: knowing when to stop is
    learnt there alone, and the mean over all rows would hide it.
    """

    total: Tensor
    ce_sum: Tensor
    kl_sum: Tensor
    kl_t1_sum: Tensor  # at temperature 1, whatever the stage's: comparable between recipes
    num_rows: Tensor
    ce_end_sum: Tensor
    kl_end_sum: Tensor
    num_end: Tensor
    emotion_sum: Tensor
    num_labelled: Tensor
    num_correct: Tensor
    said: Tensor  # [m, 5]; 1 for the emotion that the classifier names, of a clip with a label

    def table(self) -> Tensor:
        """float64 [m, len(COLUMNS)]: what is known of each sample, without a gradient."""
        columns = [getattr(self, field.name) for field in fields(self)[1:-1]]
        return torch.cat([torch.stack(columns, 1), self.said], 1).detach()


COLUMNS = (*(field.name for field in fields(Losses)[1:-1]), *(f"said_{emotion}" for emotion in EMOTIONS))


def by_sample(rows: Tensor, row_sample: Tensor, count: int) -> Tensor:
    """float64 [D, m]: values [D, R] of rows, summed over those of each of `count` samples. A product, whose order of
    adding is the same every time: CUDA's `index_add` has none."""
    member = row_sample[:, None] == torch.arange(count, device=rows.device)
    return rows.double() @ member.double()


class _GradientAtHand(torch.autograd.Function):
    """Losses [R], of which row r depends on row r of hidden [R, D] alone, with its gradient [R, D]."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, losses: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return losses.clone()

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (weight[:, None] * gradient).to(gradient.dtype), None, None


def _chunked(
    function: Callable[..., tuple[Tensor, ...]], head: Head, hidden: Tensor, *rows: Tensor
) -> tuple[Tensor, ...]:
    """What `function(head, hidden, *rows)` gives chunk by chunk: losses, to differentiate by `hidden`, and more [R]."""
    learns = torch.is_grad_enabled() and hidden.requires_grad
    results, gradients = [], []
    for piece, *others in zip(*(tensor.split(_ROWS_PER_CHUNK) for tensor in (hidden, *rows)), strict=True):
        leaf = piece.detach().requires_grad_(learns)
        with torch.set_grad_enabled(learns):
            losses, *more = function(head, leaf, *others)
        if learns:
            losses.sum().backward()
            gradients.append(leaf.grad)
        results.append((losses.detach(), *more))
    rows_losses, *rows_more = (torch.cat(values) for values in zip(*results, strict=True))
    if learns:
        rows_losses = _GradientAtHand.apply(hidden, rows_losses, torch.cat(gradients))  # type: ignore[no-untyped-call]
    return rows_losses, *rows_more


def _ce_rows(head: Head, hidden: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    return (functional.cross_entropy(head(hidden).float(), targets, reduction="none"),)


def continuation_ce(head: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    """-log p(target), float32 [R]. hidden [R, D] predicts targets [R]."""
    (rows,) = _chunked(_ce_rows, head, hidden, targets)
    return rows


def continuation_kl(head: Head, hidden: Tensor, teacher_hidden: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """KL(teacher || student), float32 [R]: both sides at `temperature`, without the factor T^2 (as the authors; arXiv
    2406.03872, eq. 1), and, not to be differentiated, at temperature 1. hidden and teacher_hidden [R, D] predict the
    same response tokens."""

    def kl_rows(head: Head, hidden: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
        student_logits, teacher_logits = head(hidden).float(), head(teacher).float()
        rows = _kl(student_logits / temperature, teacher_logits / temperature)
        with torch.no_grad():
            at_1 = _kl(student_logits, teacher_logits)
        return rows, at_1

    rows, at_1 = _chunked(kl_rows, head, hidden, teacher_hidden)
    return rows, at_1


def cached_kl(
    head: Head, hidden: Tensor, ids: Tensor, logits: Tensor, log_z: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """As `continuation_kl`, against the teacher's k likeliest tokens and the rest taken together as one more.

    hidden [R, D]; ids and logits [R, k], a free place -inf; log_z [R, 2] at `temperature` and at 1. But for
    rounding never more than the full KL; what is missing is how the two sides differ within the rest, weighted with the
    teacher's share of it.
    """

    def kl_rows(head: Head, hidden: Tensor, ids: Tensor, kept: Tensor, log_z: Tensor) -> tuple[Tensor, ...]:
        student, kept = head(hidden).float(), kept.float()
        rows = _lumped_kl(student / temperature, ids, kept / temperature - log_z[:, :1])
        with torch.no_grad():
            at_1 = _lumped_kl(student, ids, kept - log_z[:, 1:])
        return rows, at_1

    rows, at_1 = _chunked(kl_rows, head, hidden, ids, logits, log_z)
    return rows, at_1


def _lumped_kl(student: Tensor, ids: Tensor, log_p: Tensor) -> Tensor:
    """[C]: student's logits [C, V], and the teacher's log-probabilities [C, k] of the tokens `ids`."""
    free = log_p.isneginf()  # then, or with k = V, no other token has any probability
    complete = free.any(1) | (ids.shape[1] >= student.shape[1])
    mass = log_p.exp().sum(1)
    over = torch.where(complete, mass, mass.clamp(min=1))  # logits were rounded to float16
    log_p = log_p - over.log()[:, None]
    p_rest = (1 - mass).clamp(min=0).masked_fill(complete, 0)
    log_norm = student.logsumexp(1)
    log_q = student.gather(1, ids) - log_norm[:, None]
    # Summed, not 1 minus the others: of a sure student nothing would be left. Not -inf: 0 times it is no number.
    log_q_rest = student.scatter(1, ids, _NO_LOGIT).logsumexp(1) - log_norm
    kept = log_p.exp() * (log_p.masked_fill(free, 0) - log_q)
    return kept.sum(1) + torch.xlogy(p_rest, p_rest) - p_rest * log_q_rest


def _kl(student: Tensor, teacher: Tensor) -> Tensor:
    student_log, teacher_log = functional.log_softmax(student, -1), functional.log_softmax(teacher, -1)
    return functional.kl_div(student_log, teacher_log, log_target=True, reduction="none").sum(-1)


def emotion_ce(logits: Tensor, emotion: Tensor) -> tuple[Tensor, Tensor]:
    """-log p(emotion) [n], and the likeliest emotion as one-hot rows [n, 5]; both 0 without a label. logits [n, 5];
    emotion [n], -100 for none."""
    loss = functional.cross_entropy(logits.float(), emotion, ignore_index=-100, reduction="none")
    said = functional.one_hot(logits.argmax(-1), logits.shape[1])
    return loss, said * (emotion >= 0)[:, None]
