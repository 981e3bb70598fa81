"""Cross entropy of pixels: golden numbers, a sum written out, nothing to count."""

import sys
from pathlib import Path

import pytest
import torch

from ovd_d2.losses import pixel_cross_entropy

sys.path.append(str(Path(__file__).parents[1] / "modeling"))

from lseg_golden import close, golden


@pytest.mark.parametrize("ignore", [-1, 255])
def test_golden_dense_loss_and_gradient(ignore):
    values = golden("correlation_head")
    logits = values["fp32.logits"].clone().requires_grad_()
    loss = pixel_cross_entropy(logits, values[f"loss.ignore{ignore}.target"], ignore)
    loss.backward()
    assert close(loss, values[f"loss.ignore{ignore}.value"])
    assert close(logits.grad, values[f"loss.ignore{ignore}.grad_logits"], 5e-5)


def test_golden_loss_of_two_texts_per_image():
    values = golden("correlation_head")
    logits = values["zs.fp32.logits"].clone().requires_grad_()
    loss = pixel_cross_entropy(logits, values["zs.target"].long())
    loss.backward()
    assert close(loss, values["zs.loss"])
    assert close(logits.grad, values["zs.grad_logits"], 5e-5)


def test_a_sum_over_pixels_written_out():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 2, 4, generator=generator, dtype=torch.float64)
    targets = torch.randint(-1, 3, (2, 2, 4), generator=generator)
    terms = []
    for n in range(2):
        for i in range(2):
            for j in range(4):
                k = int(targets[n, i, j])
                if k >= 0:
                    terms.append(logits[n, :, i, j].exp().sum().log() - logits[n, k, i, j])
    assert 0 < len(terms) < 16
    found = pixel_cross_entropy(logits, targets)
    assert torch.allclose(found.double(), torch.stack(terms).mean(), atol=1e-6)


def test_nothing_to_count_is_zero_with_a_gradient_path():
    logits = torch.randn(1, 2, 3, 3, requires_grad=True)
    loss = pixel_cross_entropy(logits, torch.full((1, 3, 3), -1))
    loss.backward()
    assert loss == 0 and torch.equal(logits.grad, torch.zeros_like(logits))
