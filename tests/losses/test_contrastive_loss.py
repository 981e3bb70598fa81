"""The symmetric contrastive loss against a sum over pairs, written out."""

import math

import pytest
import torch

from ovd_d2.losses import symmetric_contrastive_loss


def plain(images, texts, scale, same=None):
    """Log of a softmax, pair by pair, written out."""
    count = len(images)
    total = 0.0
    for i in range(count):
        for a, b in ((images, texts), (texts, images)):
            keep = [j for j in range(count) if j == i or same is None or not same[i][j]]
            logits = [scale * (a[i] * b[j]).sum() for j in keep]
            total = total - logits[keep.index(i)] + torch.stack(logits).exp().sum().log()
    return total / count / 2


def pairs(count, dim=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2, count, dim, generator=generator, dtype=torch.float64)
    return [r.clone().requires_grad_() for r in torch.nn.functional.normalize(rows, dim=-1)]


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("captions", [None, "aabacba"])
def test_forward_and_gradient(count, captions):
    same = None
    if captions:
        same = torch.tensor([[a == b for b in captions[:count]] for a in captions[:count]])
    results = []
    for loss_of in (
        plain,
        lambda i, t, s, same: symmetric_contrastive_loss(i, t, s, same_text=same),
    ):
        images, texts = pairs(count)
        scale = torch.tensor(11.0, dtype=torch.float64, requires_grad=True)
        loss = loss_of(images, texts, scale, same)
        loss.backward()
        results.append((loss.detach(), images.grad, texts.grad, scale.grad))
    for mine, expected in zip(results[1], results[0]):
        torch.testing.assert_close(mine, expected, atol=1e-9, rtol=0)


def test_shares_of_processes_average_to_the_whole():
    images, texts = pairs(6)
    whole = symmetric_contrastive_loss(images, texts, 20.0)
    shares = [
        symmetric_contrastive_loss(
            images[start : start + 2], texts[start : start + 2], 20.0,
            all_image_embeddings=images, all_text_embeddings=texts, offset=start,
        )
        for start in (0, 2, 4)
    ]  # fmt: skip
    torch.testing.assert_close(sum(shares) / 3, whole, atol=1e-12, rtol=0)


def test_known_values():
    images = torch.eye(4, dtype=torch.float64)
    assert symmetric_contrastive_loss(images, images, 0.0).item() == pytest.approx(math.log(4))
    expected = math.log(1 + 3 * math.exp(-100.0))
    assert symmetric_contrastive_loss(images, images, 100.0).item() == pytest.approx(expected)
    wrong = symmetric_contrastive_loss(images, images.roll(1, 0), 100.0).item()
    assert wrong == pytest.approx(100.0)


def test_no_pair_gives_zero_with_a_gradient():
    images, texts = pairs(0)
    loss = symmetric_contrastive_loss(images, texts, 10.0)
    loss.backward()
    assert loss.item() == 0 and images.grad is not None


def test_all_captions_equal_leaves_no_negative():
    images, texts = pairs(3)
    same = torch.ones(3, 3, dtype=torch.bool)
    assert symmetric_contrastive_loss(images, texts, 50.0, same_text=same).item() == 0
    assert same.all()  # the argument is not changed
