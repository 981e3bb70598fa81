"""The distillation losses against their equations, written out as loops."""

import math

import pytest
import torch

from ovd_d2.errors import OVDError
from ovd_d2.losses import l1_distillation_loss, l2_distillation_loss


def slow_l1(student, teacher):
    """ViLD, section 3.3, equation by equation."""
    total = 0
    for e, v in zip(student, teacher):
        e = e / (e * e).sum().sqrt()
        v = v / (v * v).sum().sqrt()
        total = total + sum(abs(v[d] - e[d]) for d in range(len(e)))
    return total / len(student)


def slow_l2(student, teacher):
    total = 0
    for e, v in zip(student, teacher):
        cosine = (e * v).sum() / ((e * e).sum().sqrt() * (v * v).sum().sqrt())
        total = total + 2 - 2 * cosine
    return total / len(student)


LOSSES = [(l1_distillation_loss, slow_l1), (l2_distillation_loss, slow_l2)]


@pytest.mark.parametrize(("loss", "slow"), LOSSES)
@pytest.mark.parametrize(("regions", "dim"), [(1, 2), (7, 5), (40, 16)])
def test_value_and_gradient_are_the_equations(loss, slow, regions, dim):
    student = (torch.randn(regions, dim, dtype=torch.float64) * 3).requires_grad_()
    teacher = torch.randn(regions, dim, dtype=torch.float64) * 0.1
    value, expected = loss(student, teacher), slow(student, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    (gradient,) = torch.autograd.grad(value, student)
    (expected_gradient,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-9)


def test_the_norm_is_summed_over_dimensions():
    """Opposite unit vectors along one axis: |1 - -1| = 2, however wide the space is."""
    for dim in (2, 512):
        student = torch.zeros(3, dim)
        student[:, 0] = 1
        assert l1_distillation_loss(student, -student) == 2
        assert l2_distillation_loss(student, -student) == 4
    spread = torch.ones(1, 512)
    assert math.isclose(l1_distillation_loss(spread, -spread), 2 * math.sqrt(512), rel_tol=1e-6)


@pytest.mark.parametrize(("loss", "slow"), LOSSES)
def test_no_region_gives_a_zero_that_keeps_the_graph(loss, slow):
    weight = torch.randn(4, 3, requires_grad=True)
    value = loss(torch.zeros(0, 4) @ weight, torch.zeros(0, 3, dtype=torch.float16))
    assert value == 0
    value.backward()
    assert torch.equal(weight.grad, torch.zeros(4, 3))


@pytest.mark.parametrize(("loss", "slow"), LOSSES)
def test_half_precision_teacher_and_no_gradient_to_it(loss, slow):
    student = torch.randn(5, 8, requires_grad=True)
    teacher = torch.nn.functional.normalize(torch.randn(5, 8), dim=1)
    half = teacher.half().requires_grad_()
    value = loss(student, half)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(student, teacher), rtol=2e-3, atol=2e-3)
    value.backward()
    assert half.grad is None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize(("loss", "slow"), LOSSES)
def test_a_perfect_student(loss, slow):
    teacher = torch.randn(4, 6, dtype=torch.float64)
    student = (teacher * 5).requires_grad_()
    value = loss(student, teacher)
    assert value < 1e-12
    value.backward()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize(("loss", "slow"), LOSSES)
def test_a_zero_student_row_is_finite(loss, slow):
    student = torch.zeros(2, 3, requires_grad=True)
    value = loss(student, torch.ones(2, 3))
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(student.grad).all()


@pytest.mark.parametrize(("loss", "slow"), LOSSES)
@pytest.mark.parametrize("shape", [(4, 5), (3, 6), (6,)])
def test_shapes_that_do_not_fit_are_named(loss, slow, shape):
    with pytest.raises(OVDError, match=r"\(4, 6\).*EMBED_DIM"):
        loss(torch.randn(4, 6), torch.randn(shape))
