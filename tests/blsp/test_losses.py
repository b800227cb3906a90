from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from blsp.losses import _ROWS_PER_CHUNK, Losses, continuation_ce, continuation_kl, emotion_ce

WIDTH, VOCABULARY = 8, 40
ROW_COUNTS = [1, _ROWS_PER_CHUNK - 1, _ROWS_PER_CHUNK, _ROWS_PER_CHUNK + 1, 2 * _ROWS_PER_CHUNK + 3]


@pytest.fixture
def head() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, VOCABULARY, bias=False)


def rows(number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden (to differentiate), teacher's hidden, targets, weights with some zeros."""
    torch.manual_seed(number)
    hidden = torch.randn(number, WIDTH, requires_grad=True)
    weight = torch.rand(number) * (torch.arange(number) % 3 != 1)
    return hidden, torch.randn(number, WIDTH), torch.randint(VOCABULARY, (number,)), weight


def plain_kl(head: nn.Module, hidden: Tensor, teacher: Tensor, weight: Tensor, temperature: float) -> Tensor:
    p, q = ((head(h) / temperature).softmax(-1) for h in (teacher, hidden))
    return ((p * (p / q).log()).sum(-1) * weight).sum()


def both(value: Tensor, hidden: Tensor, head: nn.Linear) -> tuple[Tensor, ...]:
    return value, *torch.autograd.grad(value, [hidden, head.weight])


@pytest.mark.parametrize("number", ROW_COUNTS)
def test_ce_equals_full_logits_forward_and_gradient(head: nn.Linear, number: int) -> None:
    hidden, _, targets, weight = rows(number)
    full = -(head(hidden).log_softmax(-1)[torch.arange(number), targets] * weight).sum()
    ours = continuation_ce(head, hidden, targets, weight)
    torch.testing.assert_close(both(ours, hidden, head), both(full, hidden, head), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("number", ROW_COUNTS)
def test_kl_equals_full_logits_forward_and_gradient(head: nn.Linear, number: int, temperature: float) -> None:
    hidden, teacher, _, weight = rows(number)
    full = plain_kl(head, hidden, teacher, weight, temperature)
    ours = continuation_kl(head, hidden, teacher, weight, temperature)
    torch.testing.assert_close(both(ours, hidden, head), both(full, hidden, head), rtol=1e-4, atol=1e-5)


def test_kl_of_equals_is_zero_and_pulls_nowhere(head: nn.Linear) -> None:
    hidden, _, _, weight = rows(10)
    head.requires_grad_(False)
    kl = continuation_kl(head, hidden, hidden.detach(), weight, 2.0)
    (gradient,) = torch.autograd.grad(kl, [hidden])
    assert abs(kl.item()) < 1e-6
    assert gradient.abs().max() < 1e-6


def test_a_temperature_divides_the_logits_of_both_sides(head: nn.Linear) -> None:
    hidden, teacher, _, weight = rows(10)
    at_2 = continuation_kl(head, hidden, teacher, weight, 2.0)
    halved = nn.Linear(WIDTH, VOCABULARY, bias=False)
    halved.weight.data = head.weight.data / 2
    torch.testing.assert_close(at_2, continuation_kl(halved, hidden, teacher, weight, 1.0))
    assert at_2 < continuation_kl(head, hidden, teacher, weight, 1.0)


def test_rows_of_weight_0_contribute_nothing(head: nn.Linear) -> None:
    hidden, teacher, targets, weight = rows(20)
    kept = weight > 0
    for value, alone in (
        (
            continuation_ce(head, hidden, targets, weight),
            continuation_ce(head, hidden[kept], targets[kept], weight[kept]),
        ),
        (
            continuation_kl(head, hidden, teacher, weight, 2.0),
            continuation_kl(head, hidden[kept], teacher[kept], weight[kept], 2.0),
        ),
    ):
        torch.testing.assert_close(value, alone)
        (gradient,) = torch.autograd.grad(value, [hidden])
        assert not gradient[~kept].any()
        assert gradient[kept].any(-1).all()


def test_losses_are_in_float32_whatever_the_model(head: nn.Linear) -> None:
    hidden, teacher, targets, weight = rows(10)
    half = head.bfloat16()
    for value in (
        continuation_ce(half, hidden.bfloat16(), targets, weight),
        continuation_kl(half, hidden.bfloat16(), teacher.bfloat16(), weight, 2.0),
        emotion_ce(torch.randn(3, 5).bfloat16(), torch.tensor([0, -100, 4]))[0],
    ):
        assert value.dtype == torch.float32


def test_clips_without_a_label_are_ignored() -> None:
    logits, emotion = torch.randn(6, 5, requires_grad=True), torch.tensor([0, -100, 4, 2, -100, 2])
    known = emotion >= 0
    loss, correct, labelled = emotion_ce(logits, emotion)
    torch.testing.assert_close(loss, functional.cross_entropy(logits[known], emotion[known], reduction="sum"))
    assert int(labelled) == 4
    assert int(correct) == int((logits.argmax(-1) == emotion).sum())
    (gradient,) = torch.autograd.grad(loss, [logits])
    assert not gradient[~known].any()


def test_no_label_at_all_is_a_loss_of_zero() -> None:
    logits = torch.randn(2, 5, requires_grad=True)
    loss, correct, labelled = emotion_ce(logits, torch.tensor([-100, -100]))
    loss.backward()
    assert (loss.item(), int(correct), int(labelled)) == (0, 0, 0)
    assert not logits.grad.any()


def test_losses_become_one_vector_in_declaration_order() -> None:
    vector = Losses(*(torch.tensor(float(i), requires_grad=True) for i in range(7))).detached()
    assert vector.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert vector.dtype == torch.float64
    assert not vector.requires_grad
