"""The pseudo-max-score loss against its equation and the public code's numbers."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ovd_d2.losses import pseudo_box_loss

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "rkd" / "pms.npz")


def slow_loss(logits, labels, images, num_images):
    """Section 3.3: per image the mean over its labels, then the mean over all images."""
    total = 0
    for image in range(num_images):
        rows = [r for r in range(len(labels)) if images[r] == image]
        for r in rows:
            for column in range(logits.shape[1]):
                p = torch.sigmoid(logits[r, column])
                p = p if column == labels[r] else 1 - p
                total = total - p.log() / len(rows) / num_images
    return total


# labels, images, number of images, K
CASES = {
    "two images": ([3, 0, 2, 1, 1], [0, 0, 0, 1, 1], 2, 4),
    "one without a label": ([3, 1], [0, 2], 3, 4),
    "one class": ([0, 0, 0], [0, 1, 1], 2, 1),
    "one label": ([2], [0], 1, 5),
    "the same label twice": ([2, 2], [0, 0], 1, 3),
}


@pytest.mark.parametrize("equal_rows", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_are_the_equation(case, equal_rows):
    labels, images, num_images, num_classes = CASES[case]
    rows = 1 if equal_rows else len(labels)
    logits = torch.randn(rows, num_classes + 1, dtype=torch.float64) * 4
    logits = logits.expand(len(labels), -1).clone().requires_grad_()
    labels, images = torch.tensor(labels), torch.tensor(images)
    value = pseudo_box_loss(logits, labels, images, num_images)
    expected = slow_loss(logits, labels.tolist(), images.tolist(), num_images)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    (gradient,) = torch.autograd.grad(value, logits)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_images", [0, 2])
def test_no_label_is_zero_not_nan_and_keeps_the_graph(num_images):
    weight = torch.randn(4, 6, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    value = pseudo_box_loss(torch.zeros(0, 4) @ weight, none, none, num_images)
    assert value == 0
    value.backward()
    assert torch.equal(weight.grad, torch.zeros(4, 6))


def test_the_background_column_counts_with_target_zero():
    logits = torch.zeros(1, 3)
    value = pseudo_box_loss(logits, torch.tensor([0]), torch.tensor([0]), 1)
    assert math.isclose(value, 3 * math.log(2), rel_tol=1e-6)


def test_very_sure_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 1e4]], requires_grad=True)
    value = pseudo_box_loss(logits, torch.tensor([1]), torch.tensor([0]), 1)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("case", ["main", "nolabel", "noprop"])
def test_values_and_gradients_are_the_public_codes(case):
    """It looks up the proposal made for each label; ours gets the pairs, one row per label. Its
    mean is over all images of the batch, those without a label or a proposal too."""
    scores = torch.from_numpy(GOLDEN[f"{case}_scores"]).requires_grad_()
    sizes = GOLDEN[f"{case}_num_proposals_per_image"]
    proposals = GOLDEN[f"{case}_per_label_proposal"]
    found = proposals >= 0
    images = GOLDEN[f"{case}_per_label_image"][found]
    rows = (np.cumsum(sizes) - sizes)[images] + proposals[found]
    labels = torch.from_numpy(GOLDEN[f"{case}_per_label_label"][found])
    images, rows = torch.from_numpy(images), torch.from_numpy(rows)
    raw = pseudo_box_loss(scores[rows], labels, images, len(sizes))
    np.testing.assert_allclose(raw.item(), GOLDEN[f"{case}_pms_loss_raw"], rtol=1e-5)
    weighted = raw * float(GOLDEN["pms_loss_weight"])
    np.testing.assert_allclose(weighted.item(), GOLDEN[f"{case}_pms_loss_weighted"], rtol=1e-5)
    weighted.backward()
    expected = GOLDEN[f"{case}_grad_scores_weighted"]
    atol = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(scores.grad, expected, rtol=1e-5, atol=atol)
    for row, label, sum_over_columns in zip(
        rows, labels, GOLDEN[f"{case}_per_label_bce_sum"][found]
    ):
        one = pseudo_box_loss(scores[row][None], label[None], torch.tensor([0]), 1)
        np.testing.assert_allclose(one.item(), sum_over_columns, rtol=1e-5)
