"""Training targets and losses of a concept head (DetCLIPv2, sections 3.2 to 3.4).

Letters: N images, A anchors, M concepts of the global batch, Gi objects of image i, R matched
anchors.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes
from detectron2.structures.boxes import matched_pairwise_iou
from torch import Tensor

from ovd_d2.losses import concept_focal_loss

from .concept_head import RegionOutputs
from .localization import LocalizationLoss, Matches


class ConceptLoss:
    """Focal loss of regions and concepts, GIoU weighted by centerness, centerness.

    The focal loss is divided by the number of matched anchors, averaged over the processes.
    """

    def __init__(
        self,
        *,
        box2box_transform: Box2BoxTransform,
        anchors_per_level: int = 9,
        alignment_weight: float = 1.0,
        box_weight: float = 2.0,
        centerness_weight: float = 1.0,
        quality: str = "",
    ) -> None:
        """
        Args:
            box2box_transform: code of the box deltas.
            anchors_per_level: ATSS's candidates of an object on each level.
            alignment_weight: of the focal loss in the sum.
            box_weight: of the GIoU loss.
            centerness_weight: of the centerness loss.
            quality: what the head's additional output learns, "class_score" or "iou"; "": there is
                none.
        """
        self.box2box_transform = box2box_transform
        self.anchors_per_level = anchors_per_level
        self.alignment_weight = alignment_weight
        self.localization = LocalizationLoss(
            box2box_transform=box2box_transform,
            box_weight=box_weight,
            centerness_weight=centerness_weight,
        )
        self.quality = quality

    def __call__(
        self,
        anchors: Sequence[Boxes],
        outputs: RegionOutputs,
        concepts: Tensor,
        bias: Tensor,
        gt_boxes: Sequence[Tensor],
        gt_concepts: Sequence[Tensor],
        counted: Tensor,
        *,
        localize: bool,
    ) -> dict[str, Tensor]:
        """
        Args:
            anchors: per level, of the whole batch.
            outputs: of N images.
            concepts: (M, D) of norm 1.
            bias: scalar, of the logits.
            gt_boxes: per image (Gi, 4) x1 y1 x2 y2 in pixels of the resized image; Gi may be 0.
            gt_concepts: per image (Gi,) int64, place of the object's concept.
            counted: (N, M) bool, see :func:`concept_focal_loss`.
            localize: False: the boxes are not precise enough to learn boxes from.

        Returns:
            "loss_alignment", and with ``localize`` "loss_box_reg", "loss_centerness" and, with an
            additional output, "loss_quality": scalars, weights applied.
        """
        matches = Matches(anchors, gt_boxes, per_level=self.anchors_per_level)
        counts = torch.tensor([len(boxes) for boxes in gt_boxes], device=matches.images.device)
        starts = counts.cumsum(0) - counts
        columns = torch.cat(list(gt_concepts))[starts[matches.images] + matches.of_row]
        positives = matches.images, matches.anchors, columns
        with torch.autocast(concepts.device.type, enabled=False):
            alignment = concept_focal_loss(outputs.regions, concepts, bias, positives, counted)
            losses = {"loss_alignment": self.alignment_weight * alignment / matches.number}
            if localize:
                losses |= self.localization(matches, outputs.box_deltas, outputs.centerness)
                if self.quality:
                    losses["loss_quality"] = self._quality_loss(matches, outputs)
        return losses

    def _quality_loss(self, matches: Matches, outputs: RegionOutputs) -> Tensor:
        """Binary cross entropy: "class_score", focal with all anchors; "iou", with the overlap of
        predicted and true box at matched ones."""
        rows = matches.images, matches.anchors
        if self.quality == "class_score":
            column = torch.zeros_like(matches.images)
            one, zero = outputs.quality.new_ones(1, 1), outputs.quality.new_zeros(())
            loss = concept_focal_loss(outputs.quality[..., None], one, zero, (*rows, column))
            return loss / matches.number
        with torch.no_grad():
            predicted = self.box2box_transform.apply_deltas(
                outputs.box_deltas[rows], matches.anchor_boxes
            )
            overlap = matched_pairwise_iou(Boxes(predicted), Boxes(matches.boxes))
        logits = outputs.quality[rows]
        loss = F.binary_cross_entropy_with_logits(logits, overlap, reduction="sum")
        return loss / matches.number
