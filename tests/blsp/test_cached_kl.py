"""The KL to a teacher of whom only the likeliest tokens are known, beside the KL to all that it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from blsp.losses import _ROWS_PER_CHUNK, cached_kl, continuation_kl
from shards.sets.cached_teacher import CachedTeacher
from shards.sets.teacher import TeacherSpec

WIDTH, VOCABULARY = 16, 200
Cache = tuple[Tensor, Tensor, Tensor]


class Sharp(nn.Linear):
    """Logits that differ by about `scale`."""

    def __init__(self, vocabulary: int = VOCABULARY, scale: float = 3.0) -> None:
        super().__init__(WIDTH, vocabulary, bias=False)
        nn.init.normal_(self.weight, std=scale / WIDTH**0.5)
        self.requires_grad_(False)


@pytest.fixture
def head() -> Sharp:
    torch.manual_seed(0)
    return Sharp()


def rows(number: int) -> tuple[Tensor, Tensor]:
    """hidden of the student (to differentiate) and of the teacher, who agree somewhat."""
    torch.manual_seed(number)
    teacher = torch.randn(number, WIDTH)
    return (0.7 * teacher + 0.7 * torch.randn(number, WIDTH)).requires_grad_(), teacher


def cache(logits: Tensor, k: int, temperature: float, dtype: torch.dtype = torch.float16) -> Cache:
    """What the shards keep of the teacher's logits [R, V]: ids, logits, log_z at the temperature and at 1."""
    logits = logits.detach().float()
    logits = logits - logits.amax(1, keepdim=True)
    top = logits.topk(min(k, logits.shape[1]), dim=1)
    ids, kept = torch.zeros(len(logits), k, dtype=torch.int64), torch.full((len(logits), k), -torch.inf)
    ids[:, : top.indices.shape[1]], kept[:, : top.values.shape[1]] = top.indices, top.values
    return ids, kept.to(dtype), torch.stack([(logits / t).logsumexp(1) for t in (temperature, 1.0)], 1)


def both(head: nn.Module, hidden: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The value, and the gradient of a weighted sum of it."""
    (gradient,) = torch.autograd.grad((value * torch.linspace(0, 1, len(value))).sum(), [hidden])
    return value, gradient


@pytest.mark.parametrize("number", [1, _ROWS_PER_CHUNK + 1])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("k", [VOCABULARY, VOCABULARY + 56])
def test_with_all_tokens_kept_it_is_the_live_one(head: Sharp, number: int, temperature: float, k: int) -> None:
    hidden, teacher = rows(number)
    live, live_at_1 = continuation_kl(head, hidden, teacher, temperature)
    kept = cache(head(teacher), k, temperature, torch.float32)
    cached, cached_at_1 = cached_kl(head, hidden, *kept, temperature)
    torch.testing.assert_close(both(head, hidden, cached), both(head, hidden, live), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cached_at_1, live_at_1, rtol=1e-5, atol=1e-5)
    assert not cached_at_1.requires_grad


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_it_is_never_more_than_the_live_one_and_grows_towards_it(head: Sharp, temperature: float) -> None:
    hidden, teacher = rows(300)
    with torch.no_grad():
        live = torch.stack(continuation_kl(head, hidden, teacher, temperature))
        before = torch.zeros_like(live)
        for k in (1, 4, 16, 64, 199):
            kept = cache(head(teacher), k, temperature, torch.float32)
            cached = torch.stack(cached_kl(head, hidden, *kept, temperature))
            assert (cached >= before - 1e-5).all() and (cached <= live + 1e-5).all()
            before = cached
    assert (live - before).abs().max() < 1e-4


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_what_is_missing_is_how_the_two_differ_within_the_rest(head: Sharp, temperature: float) -> None:
    hidden, teacher = rows(100)
    ids, *kept = cache(head(teacher), 8, temperature, torch.float32)
    live, _ = continuation_kl(head, hidden, teacher, temperature)
    cached, _ = cached_kl(head, hidden, ids, *kept, temperature)
    p, q = ((head(h) / temperature).double().softmax(1).scatter(1, ids, 0) for h in (teacher, hidden))
    share = p.sum(1, keepdim=True)
    within = p * ((p / share) / (q / q.sum(1, keepdim=True))).log()
    torch.testing.assert_close((live - cached).double(), within.nansum(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("slope", "temperature", "k", "value", "gradient"),
    [
        (4.0, 1.0, 8, 5e-3, 2e-3), (4.0, 1.0, 32, 5e-3, 1e-3), (4.0, 2.0, 8, 0.2, 0.07), (4.0, 2.0, 32, 0.05, 0.01),
        (2.0, 1.0, 8, 0.15, 0.06), (2.0, 1.0, 32, 0.05, 0.01), (2.0, 2.0, 32, 0.6, 0.2),
    ],
)  # fmt: skip
def test_error_on_a_peaked_distribution(
    slope: float, temperature: float, k: int, value: float, gradient: float
) -> None:
    """The teacher gives its r-th likeliest of 8000 tokens r^-slope (4: 92 % to the first, 2: 61 %) and is kept in
    float16; the student's logits differ by 1. `value` is the share of the KL that is missing, `gradient` how far the
    gradients are apart. Temperature 2 halves the slope."""
    torch.manual_seed(0)
    ranked = -slope * torch.arange(1, 8001).float().log()
    teacher = torch.stack([ranked[torch.randperm(8000)] for _ in range(100)])
    student = (teacher + torch.randn_like(teacher)).requires_grad_()
    live = continuation_kl(nn.Identity(), student, teacher, temperature)[0].mean()
    cached = cached_kl(nn.Identity(), student, *cache(teacher, k, temperature), temperature)[0].mean()
    wanted, ours = (torch.autograd.grad(kl, [student])[0] for kl in (live, cached))
    missing, apart = float((live - cached).detach() / live.detach()), float((ours - wanted).norm() / wanted.norm())
    print(f"slope {slope} T {temperature} k {k}: {missing:.4f} of the KL is missing, gradients {apart:.4f} apart")
    assert abs(missing) < value and apart < gradient


def test_a_sure_student_and_a_sure_teacher_lose_no_digits() -> None:
    """The rest of the vocabulary has 1e-20 of the student: 1 minus the others would be 0."""
    student = torch.zeros(2, 50, dtype=torch.float64)
    student[:, 3] = torch.tensor([50.0, 50.0])
    teacher = torch.zeros(2, 50, dtype=torch.float64)
    teacher[:, 3] = torch.tensor([2.0, 50.0])
    wanted = (teacher.softmax(1) * (teacher.log_softmax(1) - student.log_softmax(1))).sum(1)
    hidden = student.float().requires_grad_()
    kl, _ = cached_kl(nn.Identity(), hidden, *cache(teacher, 1, 1.0, torch.float32), 1.0)
    kl.sum().backward()
    # All others are alike on both sides, so nothing is lost by taking them together.
    torch.testing.assert_close(kl.double(), wanted, rtol=1e-5, atol=1e-5)
    assert hidden.grad is not None and hidden.grad.isfinite().all()


def test_rounding_to_float16_makes_no_loss_of_equals(head: Sharp) -> None:
    hidden, _ = rows(300)
    for k in (8, VOCABULARY, VOCABULARY + 1):
        kl, _ = cached_kl(head, hidden, *cache(head(hidden), k, 2.0), 2.0)
        _, gradient = both(head, hidden, kl)
        assert kl.min() > -1e-5 and kl.max() < 1e-3 and gradient.abs().max() < 1e-3, k


def test_a_filler_is_finite() -> None:
    filler = CachedTeacher(TeacherSpec(4, (1.0, 2.0)), 2.0).filler(3)
    kinds = {"ids": np.int64, "logits": np.float16, "log_z": np.float32}
    kept = [torch.from_numpy(filler[name].astype(kind)) for name, kind in kinds.items()]
    hidden = torch.randn(3, 50, requires_grad=True)
    kl, at_1 = cached_kl(nn.Identity(), hidden, *kept, 2.0)
    (kl * 0).sum().backward()
    assert kl.isfinite().all() and at_1.isfinite().all()
    assert hidden.grad is not None and not hidden.grad.any()
