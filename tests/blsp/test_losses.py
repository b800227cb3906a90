from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from blsp.losses import _ROWS_PER_CHUNK, COLUMNS, Losses, by_sample, continuation_ce, continuation_kl, emotion_ce

WIDTH, VOCABULARY = 8, 40
ROW_COUNTS = [1, _ROWS_PER_CHUNK - 1, _ROWS_PER_CHUNK, _ROWS_PER_CHUNK + 1, 2 * _ROWS_PER_CHUNK + 3]


@pytest.fixture
def head() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, VOCABULARY, bias=False).requires_grad_(False)


def rows(number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden (to differentiate), teacher's hidden, targets, weights with some zeros."""
    torch.manual_seed(number)
    hidden = torch.randn(number, WIDTH, requires_grad=True)
    weight = torch.rand(number) * (torch.arange(number) % 3 != 1)
    return hidden, torch.randn(number, WIDTH), torch.randint(VOCABULARY, (number,)), weight


def plain_kl(head: nn.Module, hidden: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    p, q = ((head(h) / temperature).softmax(-1) for h in (teacher, hidden))
    return (p * (p / q).log()).sum(-1)


def both(value: Tensor, weight: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
    return value, *torch.autograd.grad((value * weight).sum(), [hidden])


@pytest.mark.parametrize("number", ROW_COUNTS)
def test_ce_equals_full_logits_forward_and_gradient(head: nn.Linear, number: int) -> None:
    hidden, _, targets, weight = rows(number)
    full = -head(hidden).log_softmax(-1)[torch.arange(number), targets]
    ours = continuation_ce(head, hidden, targets)
    torch.testing.assert_close(both(ours, weight, hidden), both(full, weight, hidden), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("number", ROW_COUNTS)
def test_kl_equals_full_logits_forward_and_gradient(head: nn.Linear, number: int, temperature: float) -> None:
    hidden, teacher, _, weight = rows(number)
    full = plain_kl(head, hidden, teacher, temperature)
    ours, at_1 = continuation_kl(head, hidden, teacher, temperature)
    torch.testing.assert_close(both(ours, weight, hidden), both(full, weight, hidden), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(at_1, plain_kl(head, hidden, teacher, 1.0).detach(), rtol=1e-4, atol=1e-5)


def test_kl_of_equals_is_zero_and_pulls_nowhere(head: nn.Linear) -> None:
    hidden, _, _, weight = rows(10)
    kl, at_1 = continuation_kl(head, hidden, hidden.detach(), 2.0)
    (gradient,) = torch.autograd.grad((kl * weight).sum(), [hidden])
    assert max(kl.abs().max(), at_1.abs().max(), gradient.abs().max()) < 1e-6


def test_a_temperature_divides_the_logits_of_both_sides(head: nn.Linear) -> None:
    hidden, teacher, _, _ = rows(10)
    at_2, at_1 = continuation_kl(head, hidden, teacher, 2.0)
    halved = nn.Linear(WIDTH, VOCABULARY, bias=False).requires_grad_(False)
    halved.weight.data = head.weight.data / 2
    torch.testing.assert_close(at_2, continuation_kl(halved, hidden, teacher, 1.0)[0])
    assert (at_2 < at_1).all()


def test_rows_do_not_read_each_other(head: nn.Linear) -> None:
    hidden, teacher, targets, _ = rows(20)
    kept = torch.arange(20) % 3 != 1
    torch.testing.assert_close(
        continuation_ce(head, hidden, targets)[kept], continuation_ce(head, hidden[kept], targets[kept])
    )
    for together, alone in zip(
        continuation_kl(head, hidden, teacher, 2.0),
        continuation_kl(head, hidden[kept], teacher[kept], 2.0),
        strict=True,
    ):
        torch.testing.assert_close(together[kept], alone)
        assert (together > 0).all()


def test_the_head_runs_once_per_row_and_never_in_the_backward_pass(head: nn.Linear) -> None:
    """Over the student's rows and the teacher's, whatever is logged beside; no more is kept than a chunk's logits."""
    number = 2 * _ROWS_PER_CHUNK + 3
    hidden, teacher, _, _ = rows(number)
    called: list[int] = []
    head.register_forward_hook(lambda module, args, output: called.append(len(output)))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        kl, _ = continuation_kl(head, hidden, teacher, 2.0)
    assert (sum(called), max(called)) == (2 * number, _ROWS_PER_CHUNK)
    assert max(kept) <= max(_ROWS_PER_CHUNK * VOCABULARY, number * WIDTH)
    kl.sum().backward()
    assert sum(called) == 2 * number


@pytest.mark.parametrize("number", [0, 3])
def test_nothing_is_kept_where_nothing_learns(head: nn.Linear, number: int) -> None:
    """Also of no row at all, in which a gradient is as empty."""
    hidden, teacher, targets, _ = rows(number)
    with torch.no_grad():
        assert not continuation_ce(head, hidden, targets).requires_grad
    assert not continuation_kl(head, hidden.detach(), teacher, 2.0)[0].requires_grad
    (gradient,) = torch.autograd.grad(continuation_kl(head, hidden, teacher, 2.0)[0].sum(), [hidden])
    assert gradient.shape == hidden.shape


def test_a_head_tied_to_the_embeddings_is_the_same_head() -> None:
    torch.manual_seed(0)
    embeddings, head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
    head.weight = embeddings.weight
    head.requires_grad_(False)
    hidden, _, targets, _ = rows(10)
    full = -(hidden @ embeddings.weight.T).log_softmax(-1)[torch.arange(10), targets]
    torch.testing.assert_close(
        both(continuation_ce(head, hidden, targets), torch.ones(10), hidden), both(full, torch.ones(10), hidden)
    )


def test_losses_are_in_float32_whatever_the_model(head: nn.Linear) -> None:
    """Not only by type: the logarithms and the sum over the vocabulary are exact for the logits that the head gave."""
    hidden, teacher, targets, _ = rows(10)
    half = head.bfloat16()
    student_logits, teacher_logits = (half(h.bfloat16()).double() for h in (hidden, teacher))
    at_2, at_1 = continuation_kl(half, hidden.bfloat16(), teacher.bfloat16(), 2.0)
    for value, temperature in ((at_2, 2.0), (at_1, 1.0)):
        p, q = ((logits / temperature).softmax(-1) for logits in (teacher_logits, student_logits))
        torch.testing.assert_close(value.double(), (p * (p / q).log()).sum(-1), rtol=1e-4, atol=1e-7)
        assert value.dtype == torch.float32
    ce = continuation_ce(half, hidden.bfloat16(), targets)
    exact = -student_logits.log_softmax(-1)[torch.arange(10), targets]
    torch.testing.assert_close(ce.double(), exact, rtol=1e-6, atol=1e-6)
    assert ce.dtype == torch.float32
    assert emotion_ce(torch.randn(3, 5).bfloat16(), torch.tensor([0, -100, 4]))[0].dtype == torch.float32


def test_clips_without_a_label_are_ignored() -> None:
    logits, emotion = torch.randn(6, 5, requires_grad=True), torch.tensor([0, -100, 4, 2, -100, 2])
    known = emotion >= 0
    loss, said = emotion_ce(logits, emotion)
    torch.testing.assert_close(loss[known], functional.cross_entropy(logits[known], emotion[known], reduction="none"))
    assert not loss[~known].any()
    assert not said[~known].any()
    assert said[known].tolist() == functional.one_hot(logits[known].argmax(-1), 5).tolist()
    (gradient,) = torch.autograd.grad(loss.sum(), [logits])
    assert not gradient[~known].any()


def test_no_label_at_all_is_a_loss_of_zero() -> None:
    logits = torch.randn(2, 5, requires_grad=True)
    loss, said = emotion_ce(logits, torch.tensor([-100, -100]))
    loss.sum().backward()
    assert (loss.tolist(), int(said.sum())) == ([0, 0], 0)
    assert not logits.grad.any()


def test_losses_become_one_row_per_sample_in_declaration_order() -> None:
    num_columns = len(fields(Losses)) - 2
    columns = [torch.tensor([i, 100.0 + i], dtype=torch.float64, requires_grad=True) for i in range(num_columns)]
    table = Losses(torch.tensor(7.0), *columns, torch.eye(5, dtype=torch.float64)[:2]).table()
    assert table[:, :num_columns].tolist() == [list(range(num_columns)), list(range(100, 100 + num_columns))]
    assert dict(zip(COLUMNS, table[1].tolist(), strict=True))["said_happy"] == 1
    assert (table.dtype, table.requires_grad) == (torch.float64, False)


def test_rows_are_added_up_clip_by_sample() -> None:
    rows, row_sample = torch.randn(3, 40), torch.sort(torch.randint(0, 4, (40,)))[0]
    expected = torch.stack([rows[:, row_sample == sample].double().sum(1) for sample in range(5)], 1)
    torch.testing.assert_close(by_sample(rows, row_sample, 5), expected)
