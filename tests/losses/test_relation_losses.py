"""RKD's two distillation losses against their equations and the public code's numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ovd_d2.errors import OVDError
from ovd_d2.losses import inter_embedding_relation_loss, mean_l1_distillation_loss

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "rkd" / "losses.npz")
CONVENTIONS = ("released", "paper")


def unit(row):
    return row / (row * row).sum().sqrt()


def slow_relation(student, teacher, convention):
    """Section 3.2, entry by entry; "released" as the public code differs from it."""
    rows = [[unit(row) for row in side] for side in (student, teacher)]
    count = len(student)
    total = 0
    for i in range(count):
        s = torch.stack([(rows[0][i] * rows[0][j]).sum() for j in range(count)])
        t = torch.stack([(rows[1][i] * rows[1][j]).sum() for j in range(count)])
        if convention == "released":
            s, t = s / s.abs().sum(), t / t.abs().sum()
        else:
            s, t = unit(s), unit(t)
        total = total + sum((s[j] - t[j]) ** 2 for j in range(count))
    return total if convention == "released" else total / count**2


def slow_mean_l1(student, teacher):
    total, count = 0, 0
    for e, v in zip(student, teacher):
        for d in range(len(e)):
            total, count = total + abs(unit(e)[d] - unit(v)[d]), count + 1
    return total / count


def hard_inputs():
    """Students and teachers, (M, D) float64."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    same = random(1, 5)
    return {
        "one region": (random(1, 4) * 3, random(1, 4)),
        "one dimension": (random(6, 1), random(6, 1)),
        "many": (random(23, 8) * 10, random(23, 8) * 0.01),
        "more dimensions than regions": (random(3, 40), random(3, 40)),
        "all students equal": (same.repeat(6, 1), random(6, 5)),
        "all teachers equal": (random(6, 5), same.repeat(6, 1)),
        "a pair of orthogonal regions": (torch.eye(2, dtype=torch.float64), random(2, 2)),
        "opposite regions": (torch.cat([same, -same]), random(2, 5)),
    }


def check(loss, slow, student, teacher):
    student = student.clone().requires_grad_()
    value, expected = loss(student, teacher), slow(student, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    (gradient,) = torch.autograd.grad(value, student)
    (expected_gradient,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", hard_inputs())
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_relation_loss_is_the_equation(case, convention):
    check(
        lambda s, t: inter_embedding_relation_loss(s, t, convention),
        lambda s, t: slow_relation(s, t, convention),
        *hard_inputs()[case],
    )


@pytest.mark.parametrize("case", hard_inputs())
def test_the_point_wise_loss_is_the_mean_over_all_elements(case):
    check(mean_l1_distillation_loss, slow_mean_l1, *hard_inputs()[case])


@pytest.mark.parametrize(
    "loss",
    [
        mean_l1_distillation_loss,
        *(lambda s, t, c=c: inter_embedding_relation_loss(s, t, c) for c in CONVENTIONS),
    ],
)
def test_no_region_is_zero_not_nan_and_keeps_the_graph(loss):
    """The public code's mean over zero regions is nan, which ends the training."""
    weight = torch.randn(4, 3, requires_grad=True)
    value = loss(torch.zeros(0, 4) @ weight, torch.zeros(0, 3, dtype=torch.float16))
    assert value == 0
    value.backward()
    assert torch.equal(weight.grad, torch.zeros(4, 3))


@pytest.mark.parametrize("seed", ["s0", "s1"])
@pytest.mark.parametrize("weights", ["lvis", "coco"])
def test_values_are_the_public_codes(seed, weights):
    student, teacher = (torch.from_numpy(GOLDEN[f"{seed}_{n}"]) for n in ("student", "teacher"))
    temperature = float(GOLDEN["rkd_temperature"])
    for name, loss in (
        ("l1", mean_l1_distillation_loss),
        ("irm", inter_embedding_relation_loss),
    ):
        raw = loss(student, teacher)
        np.testing.assert_allclose(raw, GOLDEN[f"{seed}_{name}_raw"], rtol=1e-5)
        weighted = raw * float(GOLDEN[f"w_{name}_{weights}"]) * temperature
        np.testing.assert_allclose(weighted, GOLDEN[f"{seed}_{name}_weighted_{weights}"], rtol=1e-5)


@pytest.mark.parametrize("kind", ["l1", "irm", "total"])
def test_gradients_are_the_public_codes(kind):
    student = torch.from_numpy(GOLDEN["s0_student"]).requires_grad_()
    teacher = torch.from_numpy(GOLDEN["s0_teacher"])
    temperature = float(GOLDEN["rkd_temperature"])
    loss = 0
    if kind != "irm":
        loss = loss + mean_l1_distillation_loss(student, teacher) * 0.25 * temperature
    if kind != "l1":
        loss = loss + inter_embedding_relation_loss(student, teacher) * 0.13 * temperature
    loss.backward()
    expected = GOLDEN[f"s0_grad_student_{kind}_lvis"]
    atol = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(student.grad, expected, rtol=1e-5, atol=atol)


def test_the_relations_are_among_the_regions_of_all_images():
    """One matrix per batch: the loss of two images is not the sum of theirs."""
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(8, 6, generator=generator) for _ in range(2))
    for convention in CONVENTIONS:
        parts = [
            inter_embedding_relation_loss(student[rows], teacher[rows], convention)
            for rows in (slice(0, 4), slice(4, 8))
        ]
        whole = inter_embedding_relation_loss(student, teacher, convention)
        assert not torch.isclose(whole, sum(parts))


def test_a_perfect_student_a_turned_one_and_the_teachers_gradient():
    teacher = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    turn, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))
    student = teacher.detach().clone().requires_grad_()
    for convention in CONVENTIONS:
        assert inter_embedding_relation_loss(student, teacher, convention) < 1e-20
        # Relations alone do not see a rotation of the whole space; the point-wise loss does.
        assert inter_embedding_relation_loss(student @ turn, teacher, convention) < 1e-20
    assert mean_l1_distillation_loss(student @ turn, teacher) > 0.1
    (inter_embedding_relation_loss(student * 3 + 1, teacher)).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_half_precision_rows_under_autocast_keep_their_digits():
    student = torch.randn(40, 64, requires_grad=True)
    teacher = torch.randn(40, 64)
    plain = inter_embedding_relation_loss(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = inter_embedding_relation_loss(student, teacher.half())
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, plain, rtol=2e-3, atol=1e-5)


def test_wrong_shapes_and_conventions_are_refused():
    with pytest.raises(OVDError, match=r"\(3, 4\).*\(2, 4\)"):
        inter_embedding_relation_loss(torch.ones(2, 4), torch.ones(3, 4))
    with pytest.raises(OVDError, match="MODEL.REGION_DISTILLATION.RELATION"):
        inter_embedding_relation_loss(torch.ones(2, 4), torch.ones(2, 4), "l1")
