"""Which anchors learn which object, against the public code's numbers and the definition."""

import pytest
import torch
from detectron2.structures import Boxes, pairwise_iou
from plain_boxes import plain_assign
from small_grounding_heads import (
    CODE,
    anchors_of,
    flat,
    golden,
    golden_anchors,
    whole_pixels,
)

from ovd_d2.losses import centerness_targets
from ovd_d2.modeling.dense_heads import GroundingLoss, HeadOutputs, atss_assign

GOLDEN = golden("atss")
ANCHORS = golden_anchors(GOLDEN)
TENSORS = [level.tensor for level in ANCHORS]
EVERY = torch.cat(TENSORS)
BOXES = [whole_pixels(GOLDEN[f"gt_boxes_img{image}"]) for image in range(2)]


def test_anchors_are_detectron2s():
    features = [torch.zeros(1, 1, *size.tolist()) for size in GOLDEN["grid_shapes"]]
    for ours, wanted in zip(anchors_of(features), ANCHORS):
        torch.testing.assert_close(ours.tensor, wanted.tensor, rtol=0, atol=0)


@pytest.mark.parametrize("image", [0, 1])
def test_assignment_equals_the_public_code(image):
    found = atss_assign(TENSORS, BOXES[image])
    assert found.dtype == torch.int64
    assert found.equal(GOLDEN[f"assigned_gt_index_img{image}"])
    iou = pairwise_iou(Boxes(EVERY), Boxes(BOXES[image]))
    torch.testing.assert_close(iou, GOLDEN[f"iou_matrix_img{image}"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("image", [0, 1])
def test_targets_equal_the_public_code(image):
    match = atss_assign(TENSORS, BOXES[image])
    places = (match >= 0).nonzero()[:, 0]
    assert places.equal(GOLDEN[f"positive_anchor_index_img{image}"])
    boxes = BOXES[image][match[places]]
    deltas = CODE.get_deltas(EVERY[places], boxes)
    torch.testing.assert_close(deltas, GOLDEN[f"reg_targets_img{image}"], rtol=1e-4, atol=1e-5)
    centerness = centerness_targets(EVERY[places], boxes)
    wanted = GOLDEN[f"centerness_targets_img{image}"]
    torch.testing.assert_close(centerness, wanted, rtol=1e-4, atol=1e-5)


def token_maps():
    count = [len(boxes) for boxes in BOXES]
    return [rows.bool() for rows in GOLDEN["gt_token_map"].split(count)]


def golden_outputs():
    stored = torch.cat([GOLDEN[f"loss.in.token_logits_first32_{i}"] for i in range(5)], dim=1)
    logits = torch.nn.functional.pad(stored.float(), (0, 224), value=-7.0)
    return HeadOutputs(
        logits[:, None], flat(GOLDEN, "loss.in.bbox_reg")[:, None],
        flat(GOLDEN, "loss.in.centerness")[:, None, :, 0],
    )  # fmt: skip


def test_losses_equal_the_public_code():
    loss = GroundingLoss(box2box_transform=CODE)
    mask = GOLDEN["loss.in.text_mask"].bool()
    found = loss(ANCHORS, golden_outputs(), BOXES, token_maps(), mask)
    for name, wanted in (
        ("loss_token", "dot_product_token_loss"),
        ("loss_box_reg", "reg_loss_weighted"),
        ("loss_centerness", "centerness_loss"),
    ):
        torch.testing.assert_close(found[name], GOLDEN[f"loss.{wanted}"], rtol=1e-4, atol=0)


def test_token_targets_equal_the_public_code(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "ovd_d2.modeling.dense_heads.grounding_losses.token_focal_loss",
        lambda logits, targets, mask, **_: seen.append(targets) or logits.sum() * 0,
    )
    mask = GOLDEN["loss.in.text_mask"].bool()
    GroundingLoss(box2box_transform=CODE)(ANCHORS, golden_outputs(), BOXES, token_maps(), mask)
    for image in range(2):
        positive = GOLDEN[f"positive_anchor_index_img{image}"]
        wanted = GOLDEN[f"token_targets_pos_img{image}"].bool()
        assert seen[0][image, positive].equal(wanted)
        assert seen[0][image].sum() == wanted.sum()  # background: none


@pytest.mark.parametrize("levels", [1, 2, 5])
@pytest.mark.parametrize("padded", [False, True])
def test_assignment_equals_the_definition(levels, padded):
    generator = torch.Generator().manual_seed(levels)
    corners = torch.rand(20, 2, generator=generator) * 200
    boxes = torch.cat([corners, corners + 3 + torch.rand(20, 2, generator=generator) * 90], dim=1)
    usable = torch.ones(sum(map(len, TENSORS[:levels])), dtype=torch.bool)
    if padded:
        usable = torch.cat(TENSORS[:levels])[:, [0, 2]].mean(dim=1) < 150
    found = atss_assign(TENSORS[:levels], boxes, usable=usable if padded else None)
    assert found.equal(plain_assign(TENSORS[:levels], boxes, usable))
    assert (found >= 0).any() and not (found[~usable] >= 0).any()


def test_no_object_is_all_background():
    found = atss_assign(TENSORS, torch.zeros(0, 4))
    assert found.shape == (1024,) and found.dtype == torch.int64 and found.eq(-1).all()


def test_one_anchor():
    anchor = torch.tensor([[0.0, 0, 64, 64]])
    assert atss_assign([anchor], torch.tensor([[5.0, 5, 60, 60]])).tolist() == [0]
    assert atss_assign([anchor], torch.tensor([[50.0, 50, 60, 60]])).tolist() == [-1]
    usable = torch.tensor([False])
    assert atss_assign([anchor], torch.tensor([[5.0, 5, 60, 60]]), usable=usable).tolist() == [-1]


@pytest.mark.parametrize("empty", [(0,), (0, 1)])
def test_images_without_objects_train(empty):
    outputs = golden_outputs()
    outputs.token_logits.requires_grad_()
    outputs.box_deltas.requires_grad_()
    outputs.centerness.requires_grad_()
    boxes, tokens = list(BOXES), token_maps()
    for image in empty:
        boxes[image], tokens[image] = boxes[image][:0], tokens[image][:0]
    mask = GOLDEN["loss.in.text_mask"].bool()
    losses = GroundingLoss(box2box_transform=CODE)(ANCHORS, outputs, boxes, tokens, mask)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert outputs.token_logits.grad[0].abs().sum() > 0
    assert not outputs.box_deltas.grad[0].any()
    assert outputs.box_deltas.grad[1].any() == (len(empty) == 1)


def test_weights_and_processes(monkeypatch):
    """With another process that has nothing, the normalisers halve: losses double."""
    mask = GOLDEN["loss.in.text_mask"].bool()
    given = ANCHORS, golden_outputs(), BOXES, token_maps(), mask
    alone = GroundingLoss(box2box_transform=CODE)(*given)
    monkeypatch.setattr(
        "ovd_d2.modeling.dense_heads.localization.mean_over_processes", lambda x: x / 2
    )
    doubled = GroundingLoss(
        box2box_transform=CODE, token_weight=0.5, box_weight=1.0, centerness_weight=3.0
    )(*given)
    for name, factor in (("loss_token", 1), ("loss_box_reg", 1), ("loss_centerness", 6)):
        torch.testing.assert_close(doubled[name], alone[name] * factor)


def test_losses_are_full_precision_under_amp():
    outputs = golden_outputs()
    mask = GOLDEN["loss.in.text_mask"].bool()
    given = ANCHORS, outputs, BOXES, token_maps(), mask
    wanted = GroundingLoss(box2box_transform=CODE)(*given)
    with torch.autocast("cpu", torch.bfloat16):
        found = GroundingLoss(box2box_transform=CODE)(*given)
    assert found == wanted
