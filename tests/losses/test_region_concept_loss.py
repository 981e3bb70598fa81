"""The focal loss of regions and concepts against a sum over pairs, written out."""

import pytest
import torch
from largest_tensor import LargestTensor
from plain_detclip import plain_focal

from ovd_d2.losses import concept_focal_loss

POSITIVES = [(0, 1, 0), (0, 1, 4), (1, 0, 2), (1, 3, 0)]  # one anchor with two concepts


def given(double=False, images=2, anchors=4, count=5, scale=2.0):
    generator = torch.Generator().manual_seed(0)
    dtype = torch.float64 if double else torch.float32
    regions = torch.randn(images, anchors, 3, generator=generator).to(dtype) * scale
    concepts = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    bias = torch.tensor(-1.5, dtype=dtype)
    return [x.requires_grad_() for x in (regions, concepts.to(dtype), bias)]


def columns(positives):
    return tuple(torch.tensor(positives, dtype=torch.int64).reshape(-1, 3).T)


def with_gradients(loss, inputs):
    return [loss, *torch.autograd.grad(loss, inputs)]


COUNTED = torch.tensor([[1, 1, 0, 1, 1], [1, 0, 0, 1, 1]]).bool()  # (1, 0, 2) is none of them


@pytest.mark.parametrize("at_once", [1, 2, 5, 1024])
@pytest.mark.parametrize("counted", [None, COUNTED])
@pytest.mark.parametrize("focal", [{}, {"alpha": 0.6, "gamma": 1.0}, {"gamma": 3.0}])
def test_forward_and_gradient_equal_the_definition(at_once, counted, focal):
    inputs = given(double=True)
    plain = plain_focal(*inputs, set(POSITIVES), counted, **focal)
    wanted = with_gradients(plain, inputs)
    inputs = given()
    loss = concept_focal_loss(*inputs, columns(POSITIVES), counted, at_once=at_once, **focal)
    assert loss.dtype == torch.float32
    for found, expected in zip(with_gradients(loss, inputs), wanted):
        size = expected.abs().max().item()
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6 * size)


def test_in_double_it_is_exact(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    inputs = given(double=True)
    wanted = with_gradients(plain_focal(*inputs, set(POSITIVES), COUNTED), inputs)
    for at_once in (2, 1024):
        loss = concept_focal_loss(*inputs, columns(POSITIVES), COUNTED, at_once=at_once)
        for found, expected in zip(with_gradients(loss, inputs), wanted):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_no_positive_and_no_concept():
    inputs = given()
    loss = concept_focal_loss(*inputs, columns([]))
    wanted = plain_focal(*given(double=True), set())
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-6, atol=0)
    inputs = given(count=0)
    loss = concept_focal_loss(*inputs, columns([]))
    for value in with_gradients(loss, inputs):  # every input has a gradient
        assert not value.any()
    inputs = given(anchors=0)
    assert concept_focal_loss(*inputs, columns([])) == 0


def test_pairs_that_do_not_count_have_no_gradient():
    counted = torch.ones(2, 5, dtype=torch.bool)
    counted[:, 3] = False
    counted[1] = False
    regions, concepts, bias = given()
    concept_focal_loss(regions, concepts, bias, columns(POSITIVES), counted).backward()
    assert not concepts.grad[3].any() and concepts.grad[[0, 1, 2, 4]].any(dim=1).all()
    assert not regions.grad[1].any() and regions.grad[0].any(dim=1).all()


def test_extreme_logits_are_finite():
    regions = torch.tensor([[[-50000.0], [50000.0]]], requires_grad=True)
    concepts, bias = torch.ones(1, 1, requires_grad=True), torch.zeros((), requires_grad=True)
    loss = concept_focal_loss(regions, concepts, bias, columns([(0, 1, 0)]))
    loss.backward()
    assert loss == 0 and not regions.grad.any()
    wrong = concept_focal_loss(regions, concepts, bias, columns([(0, 0, 0)]))
    assert wrong.item() == pytest.approx(0.25 * 50000 + 0.75 * 50000)


def test_memory_does_not_grow_with_the_concepts():
    sizes = []
    for count in (64, 4096):
        regions = torch.randn(1, 300, 3, requires_grad=True)
        concepts = torch.randn(count, 3, requires_grad=True)
        bias = torch.zeros((), requires_grad=True)
        with LargestTensor() as largest:
            positives = columns([(0, 5, 7)])
            concept_focal_loss(regions, concepts, bias, positives, at_once=64).backward()
        sizes.append(largest.elements)
    assert sizes[0] == 300 * 64 and sizes[1] == 300 * 64


def test_bfloat16_is_summed_in_fp32():
    inputs = [x.detach().bfloat16() for x in given()]
    wanted = concept_focal_loss(*(x.float() for x in inputs), columns(POSITIVES))
    assert concept_focal_loss(*inputs, columns(POSITIVES)) == wanted
