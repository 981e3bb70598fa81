"""Grounding heads of 8 channels for tests, and the golden files of GLIP."""

from pathlib import Path

import numpy as np
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes

from ovd_d2.modeling.dense_heads import (
    GroundingHead,
    GroundingInference,
    GroundingLoss,
    GroundingTower,
)

FOLDER = Path(__file__).parents[1] / "golden" / "glip"
CODE = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
STRIDES = (8, 16, 32, 64, 128)


def golden(name):
    arrays = np.load(FOLDER / f"{name}.npz")
    return {
        key: torch.from_numpy(value) for key, value in arrays.items() if value.dtype.kind != "U"
    }


def small_head(fusion=True, blocks=2, strides=STRIDES, inference=None, **arguments):
    torch.manual_seed(0)
    tower = GroundingTower(
        num_blocks=blocks, channels=8, text_width=12, fusion=fusion, embed_dim=16, num_heads=4,
        text_heads=3, text_feedforward=24, norm_groups=4, **arguments,
    )  # fmt: skip
    return GroundingHead(
        tower=tower,
        channels=8,
        text_width=12,
        strides=strides,
        loss=GroundingLoss(box2box_transform=CODE),
        inference=GroundingInference(box2box_transform=CODE, **(inference or {})),
    ).eval()


def randomised(head, seed=0):
    """Every parameter away from its initial value, so that outputs depend on all of them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.3
    return head


def anchors_of(features, strides=STRIDES):
    sizes = [[8.0 * stride] for stride in strides]
    generator = DefaultAnchorGenerator(sizes=sizes, aspect_ratios=[[1.0]], strides=list(strides))
    return generator(list(features))


def whole_pixels(boxes):
    """Boxes with inclusive corners as Detectron2's."""
    return boxes + boxes.new_tensor([0.0, 0.0, 1.0, 1.0])


def golden_anchors(arrays):
    return [Boxes(whole_pixels(arrays[f"anchors{level}"])) for level in range(5)]


def flat(arrays, name):
    """Maps (B, c, h, w) of all levels as (B, A, c)."""
    return torch.cat([arrays[f"{name}{level}"].flatten(2) for level in range(5)], 2).transpose(1, 2)
