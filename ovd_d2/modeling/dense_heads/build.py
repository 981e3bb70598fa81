"""Dense heads from a config."""

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import nn

from ovd_d2.errors import OVDError

from .concept_head import ConceptHead
from .concept_inference import ConceptInference
from .concept_losses import ConceptLoss
from .grounding_head import GroundingHead
from .grounding_inference import GroundingInference
from .grounding_losses import GroundingLoss
from .region_choice import QUALITIES, RegionChoice
from .tower import GroundingTower

_BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def build_grounding_head(
    cfg: CfgNode, shapes: Sequence[ShapeSpec], text_backbone: nn.Module, size_divisibility: int
) -> GroundingHead:
    """The head that ``MODEL.GLIP`` describes.

    Args:
        cfg: reads ``MODEL.GLIP`` and ``TEST.DETECTIONS_PER_IMAGE``.
        shapes: of the levels, finest first.
        text_backbone: with ``dim`` and ``num_heads``.
        size_divisibility: what the backbone pads images to a multiple of; 0: to none.

    Raises:
        OVDError: parts that do not fit together.
    """
    keys = cfg.MODEL.GLIP
    channels = shapes[0].channels
    code = Box2BoxTransform(weights=_BOX_WEIGHTS)
    token, box, centerness = keys.LOSS_WEIGHTS
    tower = GroundingTower(
        num_blocks=keys.NUM_BLOCKS,
        channels=channels,
        text_width=text_backbone.dim,
        fusion=keys.FUSION,
        fusion_init=keys.FUSION_INIT,
        embed_dim=keys.FUSION_DIM,
        num_heads=keys.FUSION_HEADS,
        text_heads=text_backbone.num_heads,
        text_feedforward=4 * text_backbone.dim,
        dropout=keys.DROPOUT,
        norm_groups=keys.NORM_GROUPS,
        coarse_offsets=keys.COARSE_OFFSETS,
        dynamic=keys.DYNAMIC,
        checkpoint_fusion=keys.CHECKPOINT,
    )
    return GroundingHead(
        tower=tower,
        channels=channels,
        text_width=text_backbone.dim,
        loss=GroundingLoss(
            box2box_transform=code,
            token_weight=token,
            box_weight=box,
            centerness_weight=centerness,
        ),
        inference=GroundingInference(
            box2box_transform=code,
            score_threshold=keys.SCORE_THRESH_TEST,
            candidates_per_level=keys.TOPK_CANDIDATES_TEST,
            nms_threshold=keys.NMS_THRESH_TEST,
            max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
            aggregation=keys.CLASS_SCORE,
        ),
        strides=[shape.stride for shape in shapes],
        size_divisibility=size_divisibility,
        initial_scale=keys.LOGIT_SCALE_INIT,
        normalize=keys.NORMALIZE_REGIONS,
    )


def build_concept_head(cfg: CfgNode, shapes: Sequence[ShapeSpec], embed_dim: int) -> dict[str, Any]:
    """The head that ``MODEL.DETCLIP`` describes, and what trains it and reads it.

    Args:
        cfg: reads ``MODEL.DETCLIP`` and ``TEST.DETECTIONS_PER_IMAGE``.
        shapes: of the levels, finest first.
        embed_dim: D, of the concepts.

    Returns:
        ``head``, ``loss``, ``region_choice`` and ``detections``.

    Raises:
        OVDError: NORM_GROUPS does not divide the channels.
    """
    keys = cfg.MODEL.DETCLIP
    if shapes[0].channels % keys.NORM_GROUPS:
        raise OVDError(
            f"MODEL.DETCLIP.NORM_GROUPS {keys.NORM_GROUPS} must divide the channels of "
            f"IN_FEATURES, {shapes[0].channels}."
        )
    code = Box2BoxTransform(weights=_BOX_WEIGHTS)
    alignment, box, centerness = keys.LOSS_WEIGHTS
    quality = keys.REGION_SCORE if keys.REGION_SCORE in QUALITIES else ""
    return {
        "head": ConceptHead(
            channels=shapes[0].channels,
            embed_dim=embed_dim,
            num_levels=len(shapes),
            num_convs=keys.NUM_CONVS,
            norm_groups=keys.NORM_GROUPS,
            deformable=keys.DEFORMABLE,
            quality=bool(quality),
            normalize=keys.NORMALIZE_REGIONS,
            initial_scale=keys.LOGIT_SCALE_INIT,
        ),
        "loss": ConceptLoss(
            box2box_transform=code,
            alignment_weight=alignment,
            box_weight=box,
            centerness_weight=centerness,
            quality=quality,
        ),
        "region_choice": RegionChoice(
            box2box_transform=code,
            score=keys.REGION_SCORE,
            regions=keys.REGIONS,
            nms_threshold=keys.NMS_THRESH_TEST,
        ),
        "detections": ConceptInference(
            box2box_transform=code,
            score_threshold=keys.SCORE_THRESH_TEST,
            candidates_per_level=keys.TOPK_CANDIDATES_TEST,
            nms_threshold=keys.NMS_THRESH_TEST,
            max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
        ),
    }
