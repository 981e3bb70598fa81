"""Similarity of texts and images, and the contrastive loss over it, against sums written out."""

import math

import pytest
import torch
from plain_detclip import plain_contrastive, plain_set_similarity

from ovd_d2.errors import OVDError
from ovd_d2.losses import image_to_text_similarity, set_similarity, smoothed_contrastive_loss
from ovd_d2.losses.word_region import MATCHES

WORDS, REGIONS = (3, 1, 4), (5, 2, 1, 6)  # of each text, of each image


def padded(lengths, seed, double, scale=1.5):
    """(len, longest, 3) with nonsense behind the end, and the mask."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(len(lengths), max(lengths), 3, generator=generator) * scale
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    rows = rows.masked_fill(~mask[..., None], 40.0)
    return rows.to(torch.float64 if double else torch.float32).requires_grad_(), mask


def given(double=False):
    words, word_mask = padded(WORDS, 1, double)
    regions, region_mask = padded(REGIONS, 2, double)
    return words, word_mask, regions, region_mask


AREAS = torch.rand(len(REGIONS), max(REGIONS), generator=torch.Generator().manual_seed(3)) * 100
AREAS[1, 2:] = 1000  # of places that hold no region


def unpadded(rows, mask):
    return [row[there] for row, there in zip(rows, mask)]


def weights():
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def compare(found, wanted, inputs, plain_inputs, tolerance):
    """Values, and gradients of a weighted sum."""
    first = torch.autograd.grad((found * weights().to(found.dtype)).sum(), inputs)
    second = torch.autograd.grad((wanted * weights()).sum(), plain_inputs)
    for one, other in zip([found, *first], [wanted, *second]):
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("at_once", [1, 100, 1 << 25])
@pytest.mark.parametrize(
    ("match", "temperature"),
    [("best", 1.0), ("softmax", 1.0), ("softmax", 0.3), ("softmax", 5.0), ("largest", 1.0)],
)
@pytest.mark.parametrize("double", [False, True])
def test_similarity_and_gradient_equal_the_definition(
    monkeypatch, match, temperature, at_once, double
):
    words, word_mask, regions, region_mask = given(double=True)
    wanted = plain_set_similarity(
        unpadded(words, word_mask), unpadded(regions, region_mask), match, temperature,
        AREAS.tolist(),
    )  # fmt: skip
    if double:
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    inputs = given(double)
    found = set_similarity(
        *inputs, match=match, softmax_temperature=temperature, areas=AREAS, at_once=at_once
    )
    assert found.shape == (3, 4)
    tolerance = 1e-12 if double else 2e-6
    compare(found, wanted, inputs[::2], (words, regions), tolerance)


def test_the_other_direction_is_the_mean_over_regions():
    words, word_mask, regions, region_mask = given(double=True)
    wanted = plain_set_similarity(unpadded(regions, region_mask), unpadded(words, word_mask))
    inputs = given()
    found = image_to_text_similarity(inputs[2], inputs[3], inputs[0], inputs[1])
    compare(found.T, wanted.T, inputs[::2], (words, regions), 2e-6)


@pytest.mark.parametrize("match", MATCHES)
def test_what_the_masks_hide_has_no_gradient(match):
    words, word_mask, regions, region_mask = given()
    set_similarity(
        words, word_mask, regions, region_mask, match=match, areas=AREAS
    ).sum().backward()
    assert not words.grad[~word_mask].any() and words.grad[word_mask].any(dim=1).all()
    assert not regions.grad[~region_mask].any() and regions.grad.any()
    assert words.grad.isfinite().all() and regions.grad.isfinite().all()


def test_softmax_tends_to_the_best_when_cold_and_to_the_mean_when_hot():
    inputs = [x.detach() for x in given()]
    best = set_similarity(*inputs)
    cold = set_similarity(*inputs, match="softmax", softmax_temperature=1e-3)
    torch.testing.assert_close(cold, best, rtol=1e-4, atol=1e-4)
    hot = set_similarity(*inputs, match="softmax", softmax_temperature=1e6)
    images = [rows.mean(dim=0, keepdim=True) for rows in unpadded(*inputs[2:])]
    wanted = plain_set_similarity(unpadded(*inputs[:2]), images)
    torch.testing.assert_close(hot, wanted, rtol=1e-4, atol=1e-4)


def test_an_unknown_match_is_refused():
    with pytest.raises(OVDError, match="match is 'worst'; it must be one of best, softmax, large"):
        set_similarity(*given(), match="worst")


def test_nothing_to_compare():
    words, word_mask, regions, region_mask = given()
    empty = set_similarity(words[:0], word_mask[:0], regions, region_mask)
    assert empty.shape == (0, 4) and empty.requires_grad
    assert set_similarity(words, word_mask, regions[:0], region_mask[:0]).shape == (3, 0)


def scores(double=True, rows=3, columns=5):
    generator = torch.Generator().manual_seed(5)
    found = torch.randn(rows, columns, generator=generator, dtype=torch.float64) * 2
    return found.to(torch.float64 if double else torch.float32).requires_grad_()


OWN = torch.tensor([2, 4, 0])
LEFT_OUT = torch.tensor([[0, 1, 0, 1, 0], [0, 0, 0, 0, 1], [1, 1, 0, 0, 1]]).bool()


@pytest.mark.parametrize("temperature", [0.07, 0.5, 3.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("left_out", [None, LEFT_OUT, torch.ones(3, 5, dtype=torch.bool)])
def test_loss_and_gradient_equal_the_definition(monkeypatch, temperature, smoothing, left_out):
    options = {"temperature": temperature, "label_smoothing": smoothing, "left_out": left_out}
    similarity = scores()
    rows = None if left_out is None else left_out.tolist()
    plain = plain_contrastive(similarity, OWN.tolist(), temperature, smoothing, rows)
    wanted = [plain, *torch.autograd.grad(plain, similarity)]
    similarity = scores(double=False)
    loss = smoothed_contrastive_loss(similarity, OWN, **options)
    assert loss.dtype == torch.float32
    for found, expected in zip([loss, *torch.autograd.grad(loss, similarity)], wanted):
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=2e-6)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    similarity = scores()
    loss = smoothed_contrastive_loss(similarity, OWN, **options)
    for found, expected in zip([loss, *torch.autograd.grad(loss, similarity)], wanted):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_without_left_out_columns_it_is_torchs():
    similarity = scores(double=False)
    wanted = torch.nn.functional.cross_entropy(similarity / 0.5, OWN, label_smoothing=0.1)
    torch.testing.assert_close(smoothed_contrastive_loss(similarity, OWN), wanted)


def test_known_values():
    similarity = torch.zeros(2, 4)
    own = torch.tensor([0, 3])
    assert smoothed_contrastive_loss(similarity, own).item() == pytest.approx(math.log(4))
    left_out = torch.ones(2, 4, dtype=torch.bool)  # one's own column stays
    assert smoothed_contrastive_loss(similarity, own, left_out=left_out).item() == 0
    assert left_out.all()  # the argument is not changed
    left_out[0, 1] = False
    found = smoothed_contrastive_loss(similarity, own, left_out=left_out)
    assert found.item() == pytest.approx(math.log(2) / 2)


def test_no_text_gives_zero_with_a_gradient():
    similarity = torch.zeros(0, 4, requires_grad=True)
    loss = smoothed_contrastive_loss(similarity, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0 and similarity.grad is not None


def test_a_left_out_column_has_no_gradient():
    similarity = scores()
    smoothed_contrastive_loss(similarity, OWN, left_out=LEFT_OUT).backward()
    hidden = LEFT_OUT.clone()
    hidden[torch.arange(3), OWN] = False
    assert not similarity.grad[hidden].any() and similarity.grad[~hidden].all()
