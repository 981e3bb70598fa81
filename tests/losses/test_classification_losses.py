"""Losses against plain transcriptions and the public code's numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ovd_d2.losses import (
    federated_class_mask,
    masked_softmax_cross_entropy,
    weighted_sigmoid_cross_entropy,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "rkd" / "sigmoid_ce.npz"


def plain_softmax(logits, targets, excluded):
    """One region at a time, base classes and background only."""
    kept = [k for k in range(len(excluded)) if not excluded[k]] + [len(excluded)]
    total, count = 0.0, 0
    for row, target in zip(logits, targets.tolist()):
        if target not in kept:
            continue
        total = total - (row[target] - torch.logsumexp(row[kept], 0))
        count += 1
    return total / count


@pytest.mark.parametrize("novel", [[], [1, 3], [0, 1, 2, 3, 4]])
def test_softmax_matches_transcription_forward_and_gradient(novel):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 6, dtype=torch.float64, generator=generator) * 5
    targets = torch.tensor([0, 5, 1, 2, 5, 4, 3])
    excluded = torch.zeros(5, dtype=torch.bool)
    excluded[novel] = True
    ours = logits.clone().requires_grad_()
    plain = logits.clone().requires_grad_()
    loss = masked_softmax_cross_entropy(ours, targets, excluded)
    expected = plain_softmax(plain, targets, excluded)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.grad, plain.grad, rtol=0, atol=1e-12)
    assert (ours.grad[:, :-1][:, excluded] == 0).all()


def test_softmax_without_held_out_classes_is_detectron2s_bit_by_bit():
    from detectron2.layers import cross_entropy

    torch.manual_seed(0)
    for regions in (1, 64, 511):
        logits, targets = torch.randn(regions, 33) * 10, torch.randint(0, 33, (regions,))
        ours = masked_softmax_cross_entropy(logits, targets, torch.zeros(32, dtype=torch.bool))
        assert torch.equal(ours, cross_entropy(logits, targets, reduction="mean"))


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("regions", [0, 3])
def test_nothing_to_learn_is_zero_with_a_gradient_path(loss, regions):
    """No region at all, or all regions of held-out classes."""
    logits = torch.randn(regions, 4, requires_grad=True)
    targets = torch.ones(regions, dtype=torch.int64)
    held_out = torch.tensor([False, True, False])
    if loss == "softmax":
        value = masked_softmax_cross_entropy(logits, targets, held_out)
    else:
        value = weighted_sigmoid_cross_entropy(logits, targets, torch.zeros(3))
    value.backward()
    assert value == 0
    assert logits.grad is not None and (logits.grad == 0).all()


def golden_weight(name, data):
    counts = torch.from_numpy(data["image_count"])
    ignore_zero = (counts > 0).float()
    federated = federated_class_mask(
        torch.from_numpy(data["gt_classes"]), torch.from_numpy(data["freq_weight"]), 4
    )
    return {
        "plain": torch.ones(10),
        "ignore_zero": ignore_zero,
        "fed_nosample": federated,
        "fed_nosample_ignore_zero": federated * ignore_zero,
    }[name]


@pytest.mark.parametrize(
    "name", ["plain", "ignore_zero", "fed_nosample", "fed_nosample_ignore_zero"]
)
def test_sigmoid_matches_public_code(name):
    data = np.load(GOLDEN)
    logits = torch.from_numpy(data["logits"]).requires_grad_()
    targets = torch.from_numpy(data["gt_classes"])
    loss = weighted_sigmoid_cross_entropy(logits, targets, golden_weight(name, data))
    loss.backward()
    expected = torch.from_numpy(data[f"loss_{name}"])
    gradient = torch.from_numpy(data[f"grad_{name}"])
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(logits.grad, gradient, rtol=0, atol=1e-5 * gradient.abs().max())


def test_federated_never_draws_held_out_classes():
    weight = torch.tensor([3.0, 0.0, 2.0, 0.0, 1.0])
    targets = torch.tensor([5, 5, 0])
    for _ in range(20):
        mask = federated_class_mask(targets, weight, 50)
        assert mask.tolist() == [1, 0, 1, 0, 1]


def test_federated_keeps_the_number_asked_for_and_prefers_frequent_classes():
    torch.manual_seed(0)
    weight = torch.cat([torch.full((10,), 100.0), torch.full((90,), 1.0)])
    targets = torch.tensor([100, 99])  # background and one rare class
    masks = torch.stack([federated_class_mask(targets, weight, 12) for _ in range(200)])
    assert (masks.sum(1) == 11).all()  # background counts as one of the 12
    assert (masks[:, 99] == 1).all()
    assert masks[:, :10].mean() > 0.8 > 0.1 > masks[:, 10:99].mean()


def test_federated_without_regions():
    mask = federated_class_mask(torch.zeros(0, dtype=torch.int64), torch.ones(6), 4)
    assert mask.sum() == 4
