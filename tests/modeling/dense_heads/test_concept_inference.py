"""From regions and concepts to detections, against scoring every anchor with every class."""

import pytest
import torch
from detectron2.structures import Boxes
from largest_tensor import LargestTensor
from plain_boxes import plain_decode
from small_grounding_heads import CODE
from torchvision.ops import nms

from ovd_d2.modeling.dense_heads import ConceptInference, RegionOutputs

D, SIZE = 6, (90, 120)  # height, width
LEVELS = (60, 20, 5)


def anchors_of(levels=LEVELS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for count in levels:
        corners = torch.rand(count, 2, generator=generator) * torch.tensor([100.0, 70.0])
        sizes = torch.rand(count, 2, generator=generator) * 40 + 10
        found.append(Boxes(torch.cat([corners, corners + sizes], dim=1)))
    return found


def given(classes, images=2, levels=LEVELS, scale=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    A = sum(levels)
    outputs = RegionOutputs(randn(images, A, D) * scale, randn(images, A, 4), randn(images, A) * 2)
    concepts = torch.nn.functional.normalize(randn(classes, D), dim=1)
    return anchors_of(levels), outputs, concepts, torch.tensor(-3.0)


def naive(anchors, outputs, concepts, bias, inference, image):
    """Boxes, scores and classes of an image: all A x K probabilities, threshold, the best of each
    level, decoding, clipping, NMS per class."""
    probabilities = (outputs.regions[image] @ concepts.T + bias).sigmoid()
    centerness = outputs.centerness[image].sigmoid()
    every = Boxes.cat(anchors).tensor.tolist()
    boxes, scores, classes = [], [], []
    start = 0
    for level in anchors:
        pairs = []
        for a in range(start, start + len(level)):
            for k in (probabilities[a] > inference.score_threshold).nonzero()[:, 0].tolist():
                pairs.append(((probabilities[a, k] * centerness[a]).item(), a, k))
        start += len(level)
        for product, a, k in sorted(pairs, reverse=True)[: inference.candidates_per_level]:
            box = plain_decode(outputs.box_deltas[image, a], every[a]).tolist()
            x0, y0 = min(max(box[0], 0), SIZE[1] - 1), min(max(box[1], 0), SIZE[0] - 1)
            x1, y1 = min(max(box[2], 1), SIZE[1]), min(max(box[3], 1), SIZE[0])
            boxes.append([x0, y0, x1, y1])
            scores.append(product**0.5)
            classes.append(k)
    boxes = torch.tensor(boxes).reshape(-1, 4)
    scores, classes = torch.tensor(scores), torch.tensor(classes, dtype=torch.int64)
    kept = []
    for k in classes.unique():
        rows = (classes == k).nonzero()[:, 0]
        kept += rows[nms(boxes[rows], scores[rows], inference.nms_threshold)].tolist()
    kept.sort(key=lambda row: -scores[row].item())
    kept = kept[: inference.max_detections]
    return boxes[kept], scores[kept], classes[kept]


def assert_same(found, wanted):
    """The same, in any order where scores tie."""
    boxes, scores, classes = wanted
    assert len(found) == len(scores)
    torch.testing.assert_close(found.scores, scores, atol=1e-6, rtol=0)
    assert (found.scores.diff() <= 0).all()
    gaps = torch.full((len(scores) + 1,), torch.inf)
    gaps[1:-1] = scores.diff().abs()
    clear = (gaps[1:] > 1e-5) & (gaps[:-1] > 1e-5)
    assert torch.equal(found.pred_classes[clear], classes[clear])
    torch.testing.assert_close(found.pred_boxes.tensor[clear], boxes[clear], atol=1e-3, rtol=0)
    return int(clear.sum())


@pytest.mark.parametrize("at_once", [1, 7, 10_000])
@pytest.mark.parametrize(
    ("classes", "options"),
    [
        (0, {}),
        (1, {}),
        (40, {"candidates_per_level": 1000, "max_detections": 10_000}),
        (40, {"candidates_per_level": 30, "max_detections": 25}),
        (40, {"candidates_per_level": 30, "score_threshold": 0.0, "max_detections": 10_000}),
        (40, {"score_threshold": 0.99}),
        (40, {"candidates_per_level": 1, "nms_threshold": 0.1}),
    ],
)
def test_detections_equal_the_naive_way(classes, options, at_once):
    inputs = given(classes)
    inference = ConceptInference(box2box_transform=CODE, classes_at_once=at_once, **options)
    found = inference(*inputs, [SIZE] * 2)
    for image in range(2):
        assert found[image].image_size == SIZE
        wanted = naive(*inputs, inference, image)
        clear = assert_same(found[image], wanted)
        assert clear >= 0.8 * len(wanted[1])
        assert len(wanted[1]) > 0 or classes == 0 or options.get("score_threshold") == 0.99


@pytest.mark.parametrize("at_once", [1, 7, 10_000])
def test_three_thousand_classes(at_once):
    inputs = given(3000, images=1, levels=(15, 5))
    inference = ConceptInference(
        box2box_transform=CODE, classes_at_once=at_once, candidates_per_level=60,
        max_detections=80,
    )  # fmt: skip
    (found,) = inference(*inputs, [SIZE])
    assert_same(found, naive(*inputs, inference, 0))
    assert len(found) == 80


@pytest.mark.parametrize("at_once", [1, 7, 10_000])
@pytest.mark.parametrize("candidates", [25, 100_000])
def test_ties(at_once, candidates):
    """Every class three times: of equal ones any may be left out by the limits, none is twice."""
    anchors, outputs, concepts, bias = given(8)
    inputs = anchors, outputs, concepts.repeat(3, 1), bias
    inference = ConceptInference(
        box2box_transform=CODE, classes_at_once=at_once, candidates_per_level=candidates,
        max_detections=100_000,
    )  # fmt: skip
    (found, _) = inference(*inputs, [SIZE] * 2)
    if candidates == 100_000:
        assert_same(found, naive(*inputs, inference, 0))
        counts = found.pred_classes.bincount(minlength=24)
        assert torch.equal(counts[:8], counts[8:16]) and torch.equal(counts[:8], counts[16:])
    keys = [
        (k, *box) for k, box in zip(found.pred_classes.tolist(), found.pred_boxes.tensor.tolist())
    ]
    assert len(set(keys)) == len(keys) > 20
    # Before suppression the best of each level are the same, whichever of equal ones are kept.
    rows, classes, scores = inference._best_pairs(
        outputs.regions[0], outputs.centerness[0].sigmoid(), inputs[2], bias, list(LEVELS)
    )
    products = (outputs.regions[0] @ inputs[2].T + bias).sigmoid()
    wanted = products.where(products > 0.05, 0) * outputs.centerness[0].sigmoid()[:, None]
    torch.testing.assert_close(wanted[rows, classes], scores)
    for level, part in enumerate(wanted.split(LEVELS)):
        first = sum(LEVELS[:level])
        own = (rows >= first) & (rows < first + len(part))
        best = part.flatten()[part.flatten() > 0].sort(descending=True).values[:candidates]
        torch.testing.assert_close(scores[own].sort(descending=True).values, best)
    assert len({*zip(rows.tolist(), classes.tolist())}) == len(rows)


def test_saturated_scores_are_kept():
    """Logits of 40 and centerness 0 or 1 in fp32: bounds are met, not passed."""
    anchors, outputs, concepts, bias = given(5, images=1, levels=(4, 2))
    outputs = RegionOutputs(
        concepts[[0, 1, 2, 3, 4, 0]][None] * 60, outputs.box_deltas,
        torch.tensor([[200.0, 200, -200, 0, 0, 0]]),
    )  # fmt: skip
    for at_once in (1, 10):
        inference = ConceptInference(
            box2box_transform=CODE, classes_at_once=at_once, candidates_per_level=2,
            nms_threshold=1.0,
        )  # fmt: skip
        (found,) = inference(anchors, outputs, concepts, bias, [SIZE])
        assert len(found) == 4
        assert found.scores[:2].tolist() == [1.0, 1.0] and found.scores.isfinite().all()


def test_boxes_stay_inside_their_image():
    anchors, outputs, concepts, bias = given(10)
    outputs.box_deltas.mul_(20)
    sizes = [(30, 50), (90, 20)]
    inference = ConceptInference(box2box_transform=CODE, score_threshold=0.0)
    for found, size in zip(inference(anchors, outputs, concepts, bias, sizes), sizes):
        assert found.image_size == size and len(found) == 100
        x0, y0, x1, y1 = found.pred_boxes.tensor.unbind(dim=1)
        assert (x0 >= 0).all() and (y0 >= 0).all() and (x1 > x0).all() and (y1 > y0).all()
        assert (x1 <= size[1]).all() and (y1 <= size[0]).all()


def test_memory_does_not_grow_with_the_classes():
    most = []
    for classes in (1000, 20_000):
        inputs = given(classes, images=1, levels=(600, 150, 40))
        inference = ConceptInference(box2box_transform=CODE, classes_at_once=500)
        with LargestTensor() as largest:
            (found,) = inference(*inputs, [SIZE])
        assert len(found) == 100
        most.append(largest.elements)
    assert most[0] == 790 * 500 and most[1] == 790 * 500
