"""Which regions of a pair meet its words, image by image."""

import pytest
import torch
from detectron2.structures import Boxes
from plain_boxes import plain_decode
from plain_detclip import plain_choice
from small_grounding_heads import CODE

from ovd_d2.errors import OVDError
from ovd_d2.modeling.dense_heads import RegionChoice, RegionOutputs
from ovd_d2.modeling.dense_heads.region_choice import SCORES

N, D, M = 2, 5, 4
OWN = [torch.tensor([0, 2]), torch.tensor([3])]


def grid(stride, size=64):
    """Square anchors of four strides around every centre of a square image."""
    places = torch.arange(size // stride) * float(stride) + stride / 2
    y, x = torch.meshgrid(places, places, indexing="ij")
    centres = torch.stack([x, y], dim=-1).reshape(-1, 2)
    return Boxes(torch.cat([centres - 2 * stride, centres + 2 * stride], dim=1))


ANCHORS = [grid(8), grid(16), grid(32)]
A = sum(map(len, ANCHORS))


def given(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator).requires_grad_()

    outputs = RegionOutputs(randn(N, A, D), randn(N, A, 4), randn(N, A), randn(N, A))
    concepts = torch.nn.functional.normalize(randn(M, D), dim=1)
    return outputs, concepts, torch.tensor(-2.0, requires_grad=True)


def plain_objectness(score, outputs, concepts, bias, image, anchor):
    def probability(logit):
        return 1 / (1 + (-logit).exp())

    columns = OWN[image].tolist() if score == "own_text" else range(M)
    similarity = max(concepts[m] @ outputs.regions[image, anchor] for m in columns) + bias
    centerness = probability(outputs.centerness[image, anchor])
    return {
        "batch_text": lambda: probability(similarity),
        "own_text": lambda: probability(similarity),
        "centerness": lambda: centerness,
        "batch_text_centerness": lambda: (probability(similarity) * centerness) ** 0.5,
        "class_score": lambda: probability(outputs.quality[image, anchor]),
        "iou": lambda: probability(outputs.quality[image, anchor]),
    }[score]()


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("regions", "before_nms"), [(10, 1000), (1000, 1000), (1000, 20)])
def test_choice_equals_a_loop(score, regions, before_nms):
    outputs, concepts, bias = given()
    choice = RegionChoice(
        box2box_transform=CODE, score=score, regions=regions, before_nms=before_nms,
        nms_threshold=0.5,
    )  # fmt: skip
    places, mask, areas = choice(ANCHORS, outputs, concepts, bias, OWN)
    assert places.shape == mask.shape == areas.shape == (N, regions)
    assert (places.dtype, mask.dtype, areas.dtype) == (torch.int64, torch.bool, torch.float32)
    every = Boxes.cat(ANCHORS).tensor.tolist()
    for image in range(N):
        rows = [plain_objectness(score, outputs, concepts, bias, image, a) for a in range(A)]
        boxes = [plain_decode(outputs.box_deltas[image, a], every[a]) for a in range(A)]
        boxes, rows = torch.stack(boxes).detach(), torch.stack(rows).detach()
        wanted = plain_choice(rows, boxes, regions, 0.5, before_nms)
        assert places[image][mask[image]].tolist() == wanted
        assert not places[image][~mask[image]].any() and not areas[image][~mask[image]].any()
        assert mask[image].int().diff().max() <= 0 or len(wanted) == regions
        sides = boxes[wanted][:, 2:] - boxes[wanted][:, :2]
        torch.testing.assert_close(areas[image, : len(wanted)], sides.prod(dim=1))


def test_nothing_of_it_has_a_gradient():
    outputs, concepts, bias = given()
    for score in SCORES:
        choice = RegionChoice(box2box_transform=CODE, score=score)
        assert not any(x.requires_grad for x in choice(ANCHORS, outputs, concepts, bias, OWN))


def test_another_images_concepts_count_unless_own_text_is_asked_for():
    concepts, regions = torch.eye(M, D), torch.zeros(N, A, D)
    regions[0, 7] = 9 * concepts[3]  # shows what the second image's text names
    regions[0, 11] = 3 * concepts[2]
    outputs = RegionOutputs(regions, torch.zeros(N, A, 4), torch.zeros(N, A))
    for score, best in (("batch_text", 7), ("own_text", 11)):
        choice = RegionChoice(box2box_transform=CODE, score=score)
        assert choice(ANCHORS, outputs, concepts, torch.zeros(()), OWN)[0][0, 0] == best


def test_fewer_regions_than_asked_for():
    outputs = RegionOutputs(torch.randn(2, 1, D), torch.zeros(2, 1, 4), torch.randn(2, 1))
    anchors = [Boxes(torch.tensor([[0.0, 0, 8, 4]]))]
    choice = RegionChoice(box2box_transform=CODE, regions=3)
    places, mask, areas = choice(anchors, outputs, torch.randn(M, D), torch.zeros(()), OWN)
    assert places.tolist() == [[0, 0, 0]] * 2 and mask.tolist() == [[True, False, False]] * 2
    assert areas.tolist() == [[32.0, 0, 0]] * 2


def test_boxes_at_one_place_are_one_region():
    count = 6
    outputs = RegionOutputs(torch.randn(1, count, D), torch.zeros(1, count, 4),
                            torch.arange(count)[None].float())  # fmt: skip
    anchors = [Boxes(torch.tensor([[0.0, 0, 8, 4]]).repeat(count, 1))]
    choice = RegionChoice(box2box_transform=CODE, score="centerness", regions=4)
    places, mask, _ = choice(anchors, outputs, torch.randn(M, D), torch.zeros(()), OWN[:1])
    assert mask.sum() == 1 and places[0, 0] == count - 1


def test_an_unknown_score_is_refused():
    with pytest.raises(OVDError, match="score is 'size'; it must be one of batch_text, own_text"):
        RegionChoice(box2box_transform=CODE, score="size")
