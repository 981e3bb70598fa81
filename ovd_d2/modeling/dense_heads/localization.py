"""Box and centerness losses of a head with one anchor per location, on ATSS's matches.

Letters: N images, A anchors, Gi objects of image i, R matched anchors over the batch.
"""

from collections.abc import Sequence

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes
from torch import Tensor

from ovd_d2.layers.process_mean import mean_over_processes
from ovd_d2.losses import centerness_loss, centerness_targets, weighted_giou_loss

from .atss import atss_assign


class Matches:
    """Which anchors learn which object.

    Attributes:
        objects: (N, A) int64, place among the objects of the image, or -1.
        images: (R,) int64, image of each matched anchor, ascending.
        anchors: (R,) int64.
        of_row: (R,) int64, its object.
        boxes: (R, 4) fp32, the object's box.
        anchor_boxes: (R, 4) fp32.
        number: R, averaged over the processes, at least 1.
    """

    def __init__(
        self,
        anchors: Sequence[Boxes],
        gt_boxes: Sequence[Tensor],
        *,
        per_level: int = 9,
        usable: Tensor | None = None,
    ) -> None:
        """
        Args:
            anchors: per level, of the whole batch.
            gt_boxes: per image (Gi, 4) x1 y1 x2 y2 in pixels of the resized image; Gi may be 0.
            per_level: see :func:`atss_assign`.
            usable: (N, A) bool, see there; None: all are.
        """
        tensors = [level.tensor for level in anchors]
        rows = [None] * len(gt_boxes) if usable is None else usable
        self.objects = torch.stack(
            [
                atss_assign(tensors, boxes, per_level=per_level, usable=row)
                for boxes, row in zip(gt_boxes, rows)
            ]
        )
        self.images, self.anchors = (self.objects >= 0).nonzero(as_tuple=True)
        self.of_row = self.objects[self.images, self.anchors]
        counts = torch.tensor([len(boxes) for boxes in gt_boxes], device=self.images.device)
        starts = counts.cumsum(0) - counts
        self.boxes = torch.cat(list(gt_boxes)).float()[starts[self.images] + self.of_row]
        self.anchor_boxes = Boxes.cat(list(anchors)).tensor[self.anchors]
        number = self.boxes.new_tensor(float(len(self.images)))
        self.number = mean_over_processes(number).clamp(min=1)


class LocalizationLoss:
    """GIoU weighted by centerness, and centerness cross entropy, in fp32.

    GIoU is divided by the sum of the centerness targets, centerness by the number of matched
    anchors; both are averaged over processes.
    """

    def __init__(
        self,
        *,
        box2box_transform: Box2BoxTransform,
        box_weight: float = 2.0,
        centerness_weight: float = 1.0,
    ) -> None:
        """
        Args:
            box2box_transform: code of the box deltas; ATSS: weights (10, 10, 5, 5).
            box_weight: of the GIoU loss in the sum.
            centerness_weight: of the centerness loss.
        """
        self.box2box_transform = box2box_transform
        self.box_weight = box_weight
        self.centerness_weight = centerness_weight

    def __call__(
        self, matches: Matches, box_deltas: Tensor, centerness: Tensor
    ) -> dict[str, Tensor]:
        """
        Args:
            matches: R matched anchors.
            box_deltas: (N, A, 4).
            centerness: (N, A) logits.

        Returns:
            "loss_box_reg", "loss_centerness": scalars, weights applied.
        """
        rows = matches.images, matches.anchors
        predicted = self.box2box_transform.apply_deltas(
            box_deltas[rows].float(), matches.anchor_boxes
        )
        targets = centerness_targets(matches.anchor_boxes, matches.boxes)
        total = mean_over_processes(targets.sum()).clamp(min=1e-6)
        box = weighted_giou_loss(predicted, matches.boxes, targets)
        return {
            "loss_box_reg": self.box_weight * box / total,
            "loss_centerness": self.centerness_weight
            * centerness_loss(centerness[rows].float(), targets)
            / matches.number,
        }
