"""Matching and losses of queries: the public code's numbers, and sums written out."""

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ovd_d2.errors import OVDError
from ovd_d2.losses import two_column_focal_loss
from ovd_d2.modeling.hungarian_matching import HungarianMatcher
from ovd_d2.modeling.set_criterion import SetCriterion
from ovd_d2.structures import TokenSpans

GOLDEN = Path(__file__).parents[1] / "golden" / "mavl" / "losses.npz"
LAYERS = ("aux0", "aux1", "last")  # first to last
NAMES = {"loss_token": "loss_ce", "loss_box_l1": "loss_bbox", "loss_box_giou": "loss_giou"}
WEIGHTS = {"loss_token": 1.0, "loss_box_l1": 5.0, "loss_box_giou": 2.0}


@pytest.fixture(scope="module")
def golden():
    return {k: torch.as_tensor(v) for k, v in np.load(GOLDEN).items() if v.dtype.kind in "bif"}


def criterion(**options):
    return SetCriterion(matcher=HungarianMatcher(), **options)


def golden_inputs(golden):
    layers = [
        {key: golden[f"in.{layer}.{key}"].clone().requires_grad_() for key in KEYS}
        for layer in LAYERS
    ]
    maps = golden["positive_map_batched"][:, :-1].bool().split([3, 2])
    return layers, maps, [golden[f"in.img{i}.boxes_cxcywh"] for i in (0, 1)]


KEYS = ("pred_logits", "pred_boxes")


def test_losses_and_gradients_are_the_public_code_s(golden):
    layers, maps, boxes = golden_inputs(golden)
    losses = criterion()({**layers[-1], "aux_outputs": layers[:-1]}, maps, boxes)
    assert len(losses) == 9
    for name, theirs in NAMES.items():
        for suffix in ("", "_0", "_1"):
            wanted = WEIGHTS[name] * golden[f"loss.{theirs}{suffix}"]
            torch.testing.assert_close(losses[name + suffix], wanted, rtol=1e-5, atol=1e-6)
    total = sum(losses.values())
    torch.testing.assert_close(total, golden["loss_total_weighted"], rtol=1e-5, atol=0)
    total.backward()
    for layer, inputs in zip(LAYERS, layers):
        for key in KEYS:
            wanted = golden[f"grad.{layer}.{key}"]
            torch.testing.assert_close(inputs[key].grad, wanted, rtol=1e-4, atol=1e-5)


def test_the_same_queries_are_matched(golden):
    layers, maps, boxes = golden_inputs(golden)
    wide = [torch.nn.functional.pad(m.float(), (0, 1)) for m in maps]
    given = [tuple(layer[key] for key in KEYS) for layer in layers]
    for layer, images in zip(LAYERS, HungarianMatcher()(given, wide, boxes), strict=True):
        for i, (queries, objects) in enumerate(images):
            assert torch.equal(queries, golden[f"match.{layer}.img{i}.query"])
            assert torch.equal(objects, golden[f"match.{layer}.img{i}.target"])


def test_a_batch_without_an_object(golden):
    layers, _, _ = golden_inputs(golden)
    nothing = [torch.zeros(0, 7, dtype=torch.bool)] * 2, [torch.zeros(0, 4)] * 2
    losses = criterion()(layers[-1], *nothing)
    for name, theirs in NAMES.items():
        torch.testing.assert_close(losses[name].detach(), golden[f"loss_notarget.{theirs}"])
    sum(losses.values()).backward()  # every output still has a gradient, which DDP needs
    assert layers[-1]["pred_boxes"].grad.abs().sum() == 0


def test_the_map_of_tokens_is_the_public_code_s(golden):
    """Their map has rows that sum to 1; 0/1 is what both train on."""
    captions = np.load(GOLDEN)["map.captions"]
    for i, caption in enumerate(map(str, captions)):
        of_characters = golden[f"map.img{i}.char_to_token"].tolist()
        offsets = torch.zeros(max(of_characters) + 2, 2, dtype=torch.int64)
        for token in range(1, len(offsets) - 1):
            places = [c for c, t in enumerate(of_characters) if t == token]
            offsets[token] = torch.tensor([places[0], places[-1] + 1])
        spans = {}
        for box, begin, end in golden[f"map.img{i}.spans"].tolist():
            spans.setdefault(box, []).append((begin, end))
        found = TokenSpans(caption, tuple(map(tuple, spans.values()))).token_map(offsets)
        wanted = golden[f"map.img{i}.positive_map"] > 0
        assert torch.equal(torch.nn.functional.pad(found, (0, 256 - found.shape[1])), wanted)


def plain_giou(first, second):
    a, b = ([x - w / 2, y - h / 2, x + w / 2, y + h / 2] for x, y, w, h in (first, second))
    inter = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = first[2] * first[3] + second[2] * second[3] - inter
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return inter / union - (hull - union) / hull


def plain_losses(logits, boxes, maps, targets, number):
    """One layer of one image by loops and all permutations: token, L1 and GIoU loss."""
    exps = [[math.exp(v) for v in row] for row in logits]
    probability = [[e / sum(row) for e in row] for row in exps]
    objects = range(len(targets))

    def cost(q, g):
        named = sum(p for p, there in zip(probability[q], maps[g]) if there)
        distance = sum(abs(a - b) for a, b in zip(boxes[q], targets[g]))
        return 5 * distance - named - 2 * plain_giou(boxes[q], targets[g])

    best = min(
        itertools.permutations(range(len(boxes)), len(targets)),
        key=lambda chosen: sum(cost(q, g) for q, g in zip(chosen, objects)),
    )
    token = l1 = giou = 0.0
    for q, row in enumerate(probability):
        if q in best:
            g = best.index(q)
            token -= sum(math.log(p) for p, there in zip(row, maps[g]) if there)
            l1 += sum(abs(a - b) for a, b in zip(boxes[q], targets[g]))
            giou += 1 - plain_giou(boxes[q], targets[g])
        else:
            token -= 0.1 * math.log(row[-1])
    return token / number, 5 * l1 / number, 2 * giou / number


def random_case(seed, queries=5, columns=7, objects=(3, 0, 1)):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(objects), queries, columns, generator=generator) * 2
    boxes = torch.rand(len(objects), queries, 4, generator=generator) * 0.5 + 0.2
    maps = [torch.rand(n, columns - 2, generator=generator) < 0.4 for n in objects]
    targets = [torch.rand(n, 4, generator=generator) * 0.5 + 0.2 for n in objects]
    return logits, boxes, maps, targets


@pytest.mark.parametrize("seed", range(3))
def test_sums_written_out(seed):
    logits, boxes, maps, targets = random_case(seed)
    outputs = {"pred_logits": logits.requires_grad_(), "pred_boxes": boxes.requires_grad_()}
    losses = criterion()(outputs, maps, targets)
    wanted = np.zeros(3)
    for i in range(len(targets)):
        given = (logits[i].tolist(), boxes[i].tolist(), maps[i].tolist(), targets[i].tolist())
        wanted += plain_losses(*given, number=4)
    np.testing.assert_allclose([losses[name].item() for name in NAMES], wanted, rtol=1e-4)
    sum(losses.values()).backward()
    step = 1e-4  # the gradient along one direction of all inputs, by differences
    generator = torch.Generator().manual_seed(9)
    moved = [torch.randn(t.shape, generator=generator) for t in (logits, boxes)]
    values = []
    wide = [torch.nn.functional.pad(m.float(), (0, 2)) for m in maps]
    same = HungarianMatcher()([(logits, boxes)], wide, targets)
    for sign in (-1, 1):
        shifted = [(t + sign * step * d).detach() for t, d in zip((logits, boxes), moved)]
        fixed = SetCriterion(matcher=lambda *_: same)  # another matching would be a jump
        again = fixed(dict(zip(KEYS, shifted)), maps, targets)
        values.append(sum(v.double() for v in again.values()).item())
    slope = sum((t.grad * d).sum() for t, d in zip((logits, boxes), moved)).item()
    assert slope == pytest.approx((values[1] - values[0]) / (2 * step), rel=2e-2, abs=5e-2)


def test_more_objects_than_queries_and_a_phrase_without_tokens():
    logits, boxes, maps, targets = random_case(0, queries=2, objects=(4,))
    maps[0][:] = False
    losses = criterion()({"pred_logits": logits, "pred_boxes": boxes}, maps, targets)
    assert losses["loss_token"] == 0  # both queries are matched, and no word is theirs
    assert losses["loss_box_l1"] > 0


def test_values_that_are_not_finite_reach_the_loss_instead_of_the_matching():
    """The check of the losses names image and iteration; scipy would only say 'invalid'."""
    logits, boxes, maps, targets = random_case(0)
    logits[0, 1, 2] = math.nan
    losses = criterion()({"pred_logits": logits, "pred_boxes": boxes}, maps, targets)
    assert math.isnan(losses["loss_token"])


def test_half_precision_is_left():
    logits, boxes, maps, targets = random_case(1)
    with torch.autocast("cpu", torch.bfloat16):
        half = criterion()(
            {"pred_logits": logits.bfloat16(), "pred_boxes": boxes.bfloat16()}, maps, targets
        )
    assert {loss.dtype for loss in half.values()} == {torch.float32}


def test_two_columns_without_language():
    """Object and none are two sigmoids; each query has a one in one of them."""
    logits, boxes, _, targets = random_case(2, columns=2)
    maps = [torch.ones(len(t), 1, dtype=torch.bool) for t in targets]
    outputs = {"pred_logits": logits, "pred_boxes": boxes}
    found = criterion(kind="focal")(outputs, maps, targets)
    matches = HungarianMatcher()(
        [(logits, boxes)], [torch.tensor([[1.0, 0.0]]).repeat(len(t), 1) for t in targets], targets
    )
    wanted = 0.0
    for i, (queries, _) in enumerate(matches[0]):
        for q in range(logits.shape[1]):
            for column in (0, 1):
                one = (q in queries.tolist()) == (column == 0)
                p = 1 / (1 + math.exp(-logits[i, q, column].item()))
                p, alpha = (p, 0.25) if one else (1 - p, 0.75)
                wanted -= alpha * (1 - p) ** 2 * math.log(p)
    assert found["loss_token"].item() == pytest.approx(wanted / 4, rel=1e-4)


def test_gradient_of_the_focal_loss():
    logits = torch.randn(2, 3, 2, dtype=torch.float32, requires_grad=True)
    targets = torch.tensor([1.0, 0.0]).expand(2, 3, 2)
    two_column_focal_loss(logits, targets).backward()
    p = logits.detach().sigmoid()
    one = -0.25 * (1 - p) ** 2 * ((1 - p) - 2 * p * p.log())
    zero = 0.75 * p**2 * (p - 2 * (1 - p) * (1 - p).log())
    torch.testing.assert_close(logits.grad, torch.where(targets > 0, one, zero))


def test_what_is_refused(monkeypatch):
    with pytest.raises(OVDError, match="kind is 'hinge'; it must be one of soft_token, focal"):
        criterion(kind="hinge")
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    logits, boxes, maps, targets = random_case(0)
    with pytest.raises(OVDError, match="pip install scipy"):
        criterion()({"pred_logits": logits, "pred_boxes": boxes}, maps, targets)
