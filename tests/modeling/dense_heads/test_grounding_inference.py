"""From head outputs to detections, against the public code's numbers."""

import pytest
import torch
from detectron2.structures import Boxes
from small_grounding_heads import CODE, flat, golden, golden_anchors, whole_pixels

from ovd_d2.errors import OVDError
from ovd_d2.modeling.dense_heads import (
    Candidates,
    GroundingInference,
    HeadOutputs,
    class_scores,
)

GOLDEN = golden("postprocess")
ANCHORS = golden_anchors(GOLDEN)
SIZES = [tuple(size) for size in GOLDEN["image_sizes_hw"].tolist()]
TOKEN_MAP = GOLDEN["in.positive_map_matrix"] > 0
NUMBERS = torch.tensor([1, 2, 3, 4, 5])
ONE_TOKEN_EACH = torch.eye(14, dtype=torch.bool)
CASES = {
    "default": {},
    "limited": {"candidates_per_level": 25, "max_detections": 12},
    "limited_mdetr9": {"candidates_per_level": 25, "max_detections": 12},
    "agg_max": {"aggregation": "max"},
    "agg_onehot": {},
}


def golden_outputs():
    return HeadOutputs(
        torch.cat([GOLDEN[f"in.token_logits{level}"] for level in range(5)], dim=1)[:, None],
        flat(GOLDEN, "in.bbox_reg")[:, None],
        flat(GOLDEN, "in.centerness")[:, None, :, 0],
    )


def classes_of(case):
    """Token map and class numbers. "onehot": token i is class i + 1."""
    if case != "agg_onehot":
        return TOKEN_MAP, NUMBERS
    count = GOLDEN["agg.ONEHOT"].shape[2]
    return ONE_TOKEN_EACH[:count], torch.arange(count) + 1


def candidates_of(case, inference):
    token_map, numbers = classes_of(case)
    return inference.candidates(ANCHORS, golden_outputs(), SIZES, [token_map] * 2, [numbers] * 2)


def test_decoding_equals_the_public_code():
    deltas = flat(GOLDEN, "in.bbox_reg")[0]
    boxes = CODE.apply_deltas(deltas, Boxes.cat(ANCHORS).tensor)
    wanted = whole_pixels(GOLDEN["decode.img0_all_unclipped"])
    torch.testing.assert_close(boxes, wanted, rtol=1e-4, atol=1e-3)


def by_score(boxes, scores, labels):
    """Sorted by class, then score, then place: what ties may change places."""
    keys = zip(labels.tolist(), (-scores).mul(1e5).round().tolist(), boxes.round().tolist())
    keys = list(keys)
    order = torch.tensor(sorted(range(len(keys)), key=keys.__getitem__))
    return boxes[order], scores[order], labels[order]


def assert_same(found, wanted):
    one, other = by_score(*found), by_score(*wanted)
    assert one[2].equal(other[2])
    torch.testing.assert_close(one[1], other[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one[0], other[0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("image", [0, 1])
def test_candidates_equal_the_public_code(image):
    found = candidates_of("default", GroundingInference(box2box_transform=CODE))[image]
    wanted = [
        torch.cat([GOLDEN[f"prenms.level{level}.img{image}.{name}"] for level in range(5)])
        for name in ("boxes", "scores", "labels")
    ]
    assert_same(found, (whole_pixels(wanted[0]), *wanted[1:]))


def golden_detections(case, rule, image):
    names = ("boxes", "scores", "labels")
    return [GOLDEN[f"{case}.{rule}.img{image}.{name}"] for name in names]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("image", [0, 1])
def test_detections_equal_the_public_code(case, image):
    inference = GroundingInference(box2box_transform=CODE, **CASES[case])
    found = inference.select(candidates_of(case, inference), SIZES)[image]
    assert found.image_size == SIZES[image]
    assert found.scores.diff().max() <= 0
    boxes, scores, labels = golden_detections(case, "ref", image)
    assert_same(
        (found.pred_boxes.tensor, found.scores, found.pred_classes),
        (whole_pixels(boxes), scores, labels),
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("image", [0, 1])
def test_suppression_on_inclusive_corners(case, image):
    """The other rule: IoU of the corners as the public code stores them, a pixel narrower."""
    inference = GroundingInference(box2box_transform=CODE, **CASES[case])
    inclusive = [
        Candidates(boxes - boxes.new_tensor([0.0, 0, 1, 1]), scores, classes)
        for boxes, scores, classes in candidates_of(case, inference)
    ]
    found = inference.select(inclusive, SIZES)[image]
    wanted = golden_detections(case, "alt_torchvision_iou", image)
    assert_same((found.pred_boxes.tensor, found.scores, found.pred_classes), wanted)


@pytest.mark.parametrize("aggregation", ["mean", "max"])
def test_class_scores_equal_the_public_code(aggregation):
    probabilities = GOLDEN["agg.in_probs"]
    for image in range(2):
        found = class_scores(probabilities[image], TOKEN_MAP, aggregation)
        wanted = GOLDEN[f"agg.{aggregation.upper()}"][image]
        torch.testing.assert_close(found, wanted[:, NUMBERS - 1])
        assert not found[:, 3].any()  # a class without tokens
        wanted = GOLDEN["agg.ONEHOT"][image]
        found = class_scores(probabilities[image], classes_of("agg_onehot")[0], aggregation)
        torch.testing.assert_close(found, wanted)


def test_several_prompts_are_one_vocabulary():
    """Two prompts with half of the classes each find what one prompt with all finds."""
    inference = GroundingInference(box2box_transform=CODE)
    one = golden_outputs()
    two = HeadOutputs(one.token_logits.expand(-1, 2, -1, -1), one.box_deltas, one.centerness)
    maps, numbers = [TOKEN_MAP[:2], TOKEN_MAP[2:]], [NUMBERS[:2], NUMBERS[2:]]
    found = inference.candidates(ANCHORS, two, SIZES, maps, numbers)
    wanted = candidates_of("default", inference)
    for detections, other in zip(inference.select(found, SIZES), inference.select(wanted, SIZES)):
        assert_same(*(
            (d.pred_boxes.tensor, d.scores, d.pred_classes) for d in (detections, other)
        ))  # fmt: skip


def test_boxes_belong_to_their_prompt():
    """Where the boxes depend on the prompt, each prompt has its own."""
    inference = GroundingInference(box2box_transform=CODE)
    one = golden_outputs()
    both = HeadOutputs(
        *(torch.cat([x[:1], x[1:]], dim=1) for x in
          (one.token_logits, one.box_deltas, one.centerness))
    )  # fmt: skip
    found = inference.candidates(ANCHORS, both, SIZES[:1], [TOKEN_MAP] * 2, [NUMBERS] * 2)[0]
    wanted = inference.candidates(ANCHORS, one, [SIZES[0]] * 2, [TOKEN_MAP] * 2, [NUMBERS] * 2)
    for got, parts in zip(found, zip(*wanted)):
        torch.testing.assert_close(got, torch.cat(parts))


def test_nothing_above_the_threshold():
    inference = GroundingInference(box2box_transform=CODE, score_threshold=1.0)
    found = inference.select(candidates_of("default", inference), SIZES)
    assert [len(detections) for detections in found] == [0, 0]
    assert found[0].pred_boxes.tensor.shape == (0, 4)


def test_every_box_keeps_a_pixel_of_its_image():
    """Boxes beyond each border, 100 pixels left, above, right and below of the image."""
    outputs = HeadOutputs(
        torch.full((1, 1, 4, 14), 5.0), torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4), 5.0)
    )
    around = [[-130.0, 0, -100, 30], [0, -130, 30, -100], [250, 0, 280, 30], [0, 220, 30, 250]]
    inference = GroundingInference(box2box_transform=CODE)
    anchors = [Boxes(torch.tensor(around))]
    found = inference.candidates(anchors, outputs, SIZES[:1], [TOKEN_MAP[:1]], [NUMBERS[:1]])[0]
    assert SIZES[0] == (120, 150)
    assert sorted(found.boxes.tolist()) == [
        [0, 0, 1, 30], [0, 0, 30, 1], [0, 119, 30, 120], [149, 0, 150, 30]
    ]  # fmt: skip


def test_wrong_arguments_are_named():
    with pytest.raises(OVDError, match="aggregation"):
        GroundingInference(box2box_transform=CODE, aggregation="power")
    inference = GroundingInference(box2box_transform=CODE)
    with pytest.raises(OVDError, match="token_maps"):
        inference.candidates(ANCHORS, golden_outputs(), SIZES, [TOKEN_MAP] * 3, [NUMBERS] * 3)
