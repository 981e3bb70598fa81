"""What one-stage open-vocabulary detectors share: pixels to features of a pyramid.

Letters: N images.
"""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.modeling.backbone import Backbone
from detectron2.structures import ImageList
from torch import Tensor, nn

from ovd_d2.errors import OVDError
from ovd_d2.language import configured_vocabulary
from ovd_d2.modeling.target_checks import TargetChecks

from .word_detector import WordDetector


class OneStageDetector(WordDetector):
    """A :class:`WordDetector` with one anchor per location of a feature pyramid."""

    reads_captions = True

    def __init__(
        self,
        *,
        backbone: Backbone,
        anchor_generator: nn.Module,
        in_features: Sequence[str],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        target_checks: TargetChecks | None = None,
    ) -> None:
        """
        Args:
            backbone: images -> feature maps, ``in_features`` among them.
            anchor_generator: Detectron2's, one anchor per location.
            in_features: names of the feature maps, finest first.
            pixel_mean: of the pixels as they come, 0-255, per channel.
            pixel_std: the same.
            target_checks: knows how the data sets number their classes; None: as the vocabulary.
        """
        super().__init__(target_checks)
        self.backbone = backbone
        self.anchor_generator = anchor_generator
        self.in_features = list(in_features)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def _preprocess(self, pixels: Sequence[Tensor]) -> ImageList:
        pixels = [(image.to(self.device) - self.pixel_mean) / self.pixel_std for image in pixels]
        return ImageList.from_tensors(pixels, self.backbone.size_divisibility)

    def _features(self, images: ImageList) -> list[Tensor]:
        maps = self.backbone(images.tensor)
        return [maps[name] for name in self.in_features]


def one_stage_parts(
    cfg: CfgNode, in_features: Sequence[str], group: str
) -> tuple[dict[str, Any], list[ShapeSpec]]:
    """Arguments of :class:`OneStageDetector` that a config names, and ``vocabulary``; with the
    shapes of the feature maps.

    Args:
        cfg: reads ``MODEL``, ``DATASETS``.
        in_features: names of the feature maps.
        group: key of the model's own group, for messages: "MODEL.GLIP".

    Raises:
        OVDError: a feature that the backbone does not give, or more than one anchor per location.
    """
    backbone = build_backbone(cfg)
    shapes = backbone.output_shape()
    missing = [name for name in in_features if name not in shapes]
    if missing:
        raise OVDError(
            f"{group}.IN_FEATURES names {missing[0]!r}, which the backbone does not give: "
            f"it gives {', '.join(shapes)}."
        )
    levels = [shapes[name] for name in in_features]
    if any(shape.channels != levels[0].channels for shape in levels):
        raise OVDError(
            f"{group}.IN_FEATURES have different numbers of channels "
            f"({', '.join(str(shape.channels) for shape in levels)}): give levels of an FPN."
        )
    anchors = build_anchor_generator(cfg, levels)
    if set(anchors.num_anchors) != {1}:
        raise OVDError(
            f"MODEL.ANCHOR_GENERATOR makes {max(anchors.num_anchors)} anchors per location, "
            f"{group.rpartition('.')[2]} has one: give one of SIZES per level, and ASPECT_RATIOS "
            "[[1.0]]."
        )
    parts = {
        "backbone": backbone,
        "anchor_generator": anchors,
        "in_features": in_features,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
        "target_checks": TargetChecks(cfg),
        "vocabulary": configured_vocabulary(
            cfg.MODEL.OPEN_VOCAB.VOCABULARY, cfg.DATASETS.TRAIN, cfg.DATASETS.NOVEL_NAMES
        ),
    }
    return parts, levels
