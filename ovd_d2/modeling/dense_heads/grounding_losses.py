"""Training targets and losses of a grounding head.

Letters: N images, A anchors, L tokens, Gi objects of image i.
"""

from collections.abc import Sequence

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes
from torch import Tensor

from ovd_d2.losses import token_focal_loss

from .grounding_outputs import HeadOutputs
from .localization import LocalizationLoss, Matches


class GroundingLoss:
    """Token focal loss, GIoU weighted by centerness, centerness cross entropy on ATSS's matches.

    The first and the last are divided by the number of matched anchors, GIoU by the sum of the
    centerness targets; both are averaged over processes, the number is at least 1. A background
    anchor has no positive token, whatever the caption's length. Everything is computed in fp32.
    """

    def __init__(
        self,
        *,
        box2box_transform: Box2BoxTransform,
        anchors_per_level: int = 9,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        token_weight: float = 1.0,
        box_weight: float = 2.0,
        centerness_weight: float = 1.0,
    ) -> None:
        """
        Args:
            box2box_transform: code of the box deltas; GLIP: weights (10, 10, 5, 5).
            anchors_per_level: candidates of an object on each level.
            focal_alpha: weight of positive tokens.
            focal_gamma: exponent of the focal loss.
            token_weight: of the token loss in the sum.
            box_weight: of the GIoU loss.
            centerness_weight: of the centerness loss.
        """
        self.localization = LocalizationLoss(
            box2box_transform=box2box_transform,
            box_weight=box_weight,
            centerness_weight=centerness_weight,
        )
        self.anchors_per_level = anchors_per_level
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.token_weight = token_weight

    def __call__(
        self,
        anchors: Sequence[Boxes],
        outputs: HeadOutputs,
        gt_boxes: Sequence[Tensor],
        gt_tokens: Sequence[Tensor],
        text_mask: Tensor,
    ) -> dict[str, Tensor]:
        """
        Args:
            anchors: per level, of the whole batch.
            outputs: with one prompt per image (P = 1).
            gt_boxes: per image (Gi, 4) x1 y1 x2 y2 in pixels of the resized image; Gi may be 0.
            gt_tokens: per image (Gi, L) bool, True on the tokens of the object's phrase. A row
                without any (its phrase was cut off) still trains the box.
            text_mask: (N, L) bool, True on tokens that are not padding.

        Returns:
            "loss_token", "loss_box_reg", "loss_centerness": scalars, weights applied.
        """
        with torch.autocast(text_mask.device.type, enabled=False):
            return self._losses(anchors, outputs, gt_boxes, gt_tokens, text_mask)

    def _losses(
        self,
        anchors: Sequence[Boxes],
        outputs: HeadOutputs,
        gt_boxes: Sequence[Tensor],
        gt_tokens: Sequence[Tensor],
        text_mask: Tensor,
    ) -> dict[str, Tensor]:
        matches = Matches(
            anchors, gt_boxes, per_level=self.anchors_per_level, usable=outputs.usable
        )
        token_logits = outputs.token_logits[:, 0]
        targets = torch.zeros_like(token_logits, dtype=torch.bool)
        for image, (match, tokens) in enumerate(zip(matches.objects, gt_tokens)):
            anchor = (match >= 0).nonzero()[:, 0]
            targets[image, anchor] = tokens[match[anchor]]
        token_loss = token_focal_loss(
            token_logits, targets, text_mask, alpha=self.focal_alpha, gamma=self.focal_gamma
        )
        return {
            "loss_token": self.token_weight * token_loss / matches.number,
            **self.localization(matches, outputs.box_deltas[:, 0], outputs.centerness[:, 0]),
        }
