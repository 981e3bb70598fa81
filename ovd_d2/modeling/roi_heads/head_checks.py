"""What can be known to be wrong about open-vocabulary ROI heads before they see an image."""

from collections.abc import Sequence

from detectron2.config import CfgNode
from torch import nn

from ovd_d2.errors import OVDError

from .image_branch import ImageBranch
from .open_vocab_box_predictor import OpenVocabBoxPredictor
from .region_distiller import RegionDistiller
from .region_task import RegionTask
from .score_fusion import ScoreRule

PLAIN, CASCADE, C4 = "OpenVocabROIHeads", "OpenVocabCascadeROIHeads", "OpenVocabRes5ROIHeads"


def check_head_name(cfg: CfgNode) -> None:
    """Whether ``MODEL.ROI_HEADS.NAME``, if it is one of ours, goes with the rest of ``cfg``.

    Raises:
        OVDError: it is for another kind of detector; the sentence names the one to use.
    """
    heads, head_of_boxes = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD.NAME
    features = list(heads.IN_FEATURES)
    name = f"MODEL.ROI_HEADS.NAME is {heads.NAME}"
    if heads.NAME == C4:
        if len(features) != 1 or features == ["res5"]:
            raise OVDError(
                f"{name}, which is for C4 detectors, but MODEL.ROI_HEADS.IN_FEATURES is "
                f"{features}, as in FPN and C5 detectors: set MODEL.ROI_HEADS.NAME {PLAIN}, or "
                f"{CASCADE} for a cascade."
            )
        if cfg.MODEL.KEYPOINT_ON:
            raise OVDError(
                f"{name}, which has no keypoint head, as Detectron2's Res5ROIHeads: set "
                "MODEL.KEYPOINT_ON False or take an FPN detector."
            )
    elif heads.NAME in (PLAIN, CASCADE) and not head_of_boxes:
        remedy = (
            f"set MODEL.ROI_HEADS.NAME {C4}"
            if features == ["res4"]
            else "set MODEL.ROI_BOX_HEAD.NAME FastRCNNConvFCHead"
        )
        raise OVDError(
            f"{name}, which needs a box head, but MODEL.ROI_BOX_HEAD.NAME is '', as in C4 "
            f"detectors: {remedy}."
        )


def check_class_agnostic(cfg: CfgNode) -> None:
    """Raises OVDError unless boxes and masks of ``cfg`` are class-agnostic."""
    if not cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
        raise OVDError(
            "Open-vocabulary heads need boxes that no class owns: set "
            "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True."
        )
    if cfg.MODEL.MASK_ON and not cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK:
        raise OVDError(
            "Open-vocabulary heads need masks that no class owns: set "
            "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK True."
        )


def check_parts(
    box_predictors: list[nn.Module],
    mask_head: nn.Module | None,
    region_tasks: Sequence[RegionTask],
    image_branch: ImageBranch | None,
    score_rule: ScoreRule | None,
) -> None:
    """Whether parts that were given as arguments go together.

    Raises:
        OVDError: naming the argument.
    """
    for predictor in box_predictors:
        if not isinstance(predictor, OpenVocabBoxPredictor):
            raise OVDError(
                f"box_predictor is a {type(predictor).__name__}; open-vocabulary heads need an "
                "OpenVocabBoxPredictor (in a cascade, one per stage)."
            )
    masks = 1 if mask_head is None else _masks_per_region(mask_head)
    if masks > 1:
        raise OVDError(
            f"mask_head predicts {masks} masks per region, one per class, which no other "
            "vocabulary could use: build it with num_classes=1."
        )
    distils = any(isinstance(task, RegionDistiller) for task in region_tasks)
    if distils and image_branch is not None:
        raise OVDError(
            "region_tasks has a RegionDistiller, which teaches the text branch, and image_branch "
            "has its own: give one of them."
        )
    if score_rule is not None and score_rule.combine == "ensemble" and image_branch is None:
        raise OVDError('score_rule combines with "ensemble", which needs an image_branch.')


def _masks_per_region(mask_head: nn.Module) -> int:
    """Outputs of the last convolution of Detectron2's mask heads (in PointRend's two: the most)."""
    last = [part for name, part in mask_head.named_modules() if name.split(".")[-1] == "predictor"]
    return max((getattr(part, "out_channels", 1) for part in last), default=1)
