"""Losses of the grounding head against the public code's numbers and plain transcriptions."""

import math

import pytest
import torch
from plain_boxes import plain_giou
from small_grounding_heads import golden

from ovd_d2.losses import (
    between_pixel_centres,
    centerness_loss,
    centerness_targets,
    token_focal_loss,
    weighted_giou_loss,
)

ALIGNMENT = golden("alignment")


def plain_focal(logits, targets, mask, alpha=0.25, gamma=2.0):
    total = 0.0
    for n in range(logits.shape[0]):
        for a in range(logits.shape[1]):
            for token in range(logits.shape[2]):
                if not mask[n, token]:
                    continue
                p = 1 / (1 + (-logits[n, a, token]).exp())
                if targets[n, a, token]:
                    total = total - alpha * (1 - p) ** gamma * p.log()
                else:
                    total = total - (1 - alpha) * p**gamma * (1 - p).log()
    return total


def test_token_loss_equals_the_public_code():
    logits = torch.cat([ALIGNMENT[f"fused.token_logits{level}"] for level in range(5)], dim=1)
    logits.requires_grad_()
    targets, mask = ALIGNMENT["loss.targets"].bool(), ALIGNMENT["in.text_mask"].bool()
    loss = token_focal_loss(logits, targets, mask)
    torch.testing.assert_close(loss, ALIGNMENT["loss.sum"], rtol=1e-4, atol=0)
    value = loss / ALIGNMENT["loss.num_pos"]
    torch.testing.assert_close(value, ALIGNMENT["loss.value"], rtol=1e-4, atol=0)
    gradient = torch.autograd.grad(value, logits)[0]
    torch.testing.assert_close(gradient, ALIGNMENT["loss.grad_logits"], rtol=1e-4, atol=1e-6)
    everything = token_focal_loss(logits, targets, torch.ones_like(mask))
    torch.testing.assert_close(everything, ALIGNMENT["loss.sum_nomask"], rtol=1e-4, atol=0)


def test_background_has_no_positive_token_where_the_caption_is_full():
    """The public code gives unmatched anchors the last column, here a real token of image 1."""
    logits = torch.cat([ALIGNMENT[f"fused.token_logits{level}"] for level in range(5)], dim=1)
    mask = ALIGNMENT["in.text_mask"].bool()
    assert mask[1].all()
    theirs = ALIGNMENT["loss.allneg_sum"]
    targets = torch.zeros_like(logits, dtype=torch.bool)
    ours = token_focal_loss(logits, targets, mask)
    targets[..., -1] = True
    torch.testing.assert_close(token_focal_loss(logits, targets, mask), theirs, rtol=1e-4, atol=0)
    assert ours < theirs / 2


@pytest.mark.parametrize("alpha", [0.25, 0.6])
def test_token_loss_and_gradient_equal_the_definition(alpha):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64) * 3
    logits.requires_grad_()
    targets = torch.rand(2, 3, 4, generator=generator) > 0.6
    mask = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 0]]).bool()
    found = token_focal_loss(logits, targets, mask, alpha=alpha)
    plain = plain_focal(logits, targets, mask, alpha)
    torch.testing.assert_close(found.double(), plain, rtol=1e-6, atol=1e-6)
    one, other = (torch.autograd.grad(loss, logits)[0] for loss in (found, plain))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_extreme_logits_are_finite():
    logits = torch.tensor([[[-50000.0, 50000.0]]], requires_grad=True)
    loss = token_focal_loss(logits, torch.tensor([[[False, True]]]), torch.ones(1, 2).bool())
    loss.backward()
    assert loss == 0 and not logits.grad.any()


def test_giou_and_gradient_equal_the_definition():
    boxes = torch.tensor(
        [[1.0, 2, 11, 12], [0, 0, 4, 5], [4, 3, 30, 9]], dtype=torch.float64, requires_grad=True
    )
    targets = torch.tensor([[2.0, 3, 13, 11], [20, 20, 30, 40], [3, 2, 29, 8]]).double()
    weights = torch.tensor([0.2, 1.0, 0.7]).double()
    found = weighted_giou_loss(boxes, targets, weights)
    plain = sum(w * (1 - plain_giou(b, t)) for b, t, w in zip(boxes, targets, weights))
    torch.testing.assert_close(found, plain, rtol=1e-6, atol=1e-6)
    one, other = (torch.autograd.grad(loss, boxes)[0] for loss in (found, plain))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_boxes_narrower_than_a_pixel_have_no_width():
    box = torch.tensor([[5.0, 5, 5.2, 20]])
    assert between_pixel_centres(box).tolist() == [[5.5, 5.5, 5.5, 19.5]]
    assert weighted_giou_loss(box, box, torch.ones(1)).isfinite()


@pytest.mark.parametrize(
    ("box", "wanted"),
    [
        ([0.0, 0, 64, 64], 1.0),
        ([0.0, 0, 128, 64], math.sqrt(31.5 / 95.5)),
        ([16.0, 16, 64, 64], 15.5 / 31.5),
        ([40.0, 0, 64, 64], 0.0),  # the centre is outside
    ],
)
def test_centerness(box, wanted):
    found = centerness_targets(torch.tensor([[0.0, 0, 64, 64]]), torch.tensor([box]))
    assert found.item() == pytest.approx(wanted)


def test_no_matched_anchor_gives_zero_with_a_gradient():
    boxes, logits = torch.zeros(0, 4, requires_grad=True), torch.zeros(0, requires_grad=True)
    targets = centerness_targets(torch.zeros(0, 4), torch.zeros(0, 4))
    loss = weighted_giou_loss(boxes, torch.zeros(0, 4), targets) + centerness_loss(logits, targets)
    loss.backward()
    assert loss == 0 and boxes.grad is not None and logits.grad is not None
