"""One query for every object: the assignment of least cost (DETR, Carion et al. 2020, equation 1).

Letters: N images, Q queries, C columns of the logits, Gi objects of image i. Boxes are cx cy w h,
relative to the image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from ovd_d2.errors import OVDError

_NEVER = 1e6  # cost of a pair whose cost is not finite


class HungarianMatcher:
    """Cost of query q and object g: ``class_cost * -sum_c map_gc softmax(logits_q)_c + l1_cost *
    |b_q - b_g|_1 - giou_cost * GIoU(b_q, b_g)``, where ``map`` is 1 on the columns of the object.

    A query has at most one object, and an object one query; with more objects than queries some
    have none.
    """

    def __init__(
        self, *, class_cost: float = 1.0, l1_cost: float = 5.0, giou_cost: float = 2.0
    ) -> None:
        """
        Args:
            class_cost: weight of the probability of the object's columns.
            l1_cost: weight of the distance of the boxes.
            giou_cost: weight of their overlap.
        """
        self.class_cost = class_cost
        self.l1_cost = l1_cost
        self.giou_cost = giou_cost

    @torch.no_grad()
    def __call__(
        self,
        layers: Sequence[tuple[Tensor, Tensor]],
        maps: Sequence[Tensor],
        boxes: Sequence[Tensor],
    ) -> list[list[tuple[Tensor, Tensor]]]:
        """Matches every layer by itself; the costs of all go to the CPU in one copy.

        Args:
            layers: per layer the logits (N, Q, C) and the boxes (N, Q, 4).
            maps: per image (Gi, C) float, 1 on the columns of an object, else 0.
            boxes: per image (Gi, 4).

        Returns:
            per layer and image the queries and their objects, two int64 tensors of min(Q, Gi) on
            the CPU, by rising query.

        Raises:
            OVDError: scipy is missing.
        """
        assign = _linear_sum_assignment()
        costs = [
            self._cost(logits[i], predicted[i], maps[i], boxes[i])
            for logits, predicted in layers
            for i in range(len(boxes))
        ]
        flat = torch.cat([cost.flatten() for cost in costs]) if costs else torch.empty(0)
        flat = flat.nan_to_num(nan=_NEVER, posinf=_NEVER, neginf=_NEVER).cpu()
        found, start = [], 0
        for cost in costs:
            part = flat[start : start + cost.numel()].view(cost.shape)
            start += cost.numel()
            found.append(tuple(map(torch.as_tensor, assign(part.numpy()))))
        return [found[i : i + len(boxes)] for i in range(0, len(found), max(len(boxes), 1))]

    def _cost(self, logits: Tensor, predicted: Tensor, maps: Tensor, boxes: Tensor) -> Tensor:
        """(Q, Gi) fp32 of one image."""
        predicted = predicted.float()
        probability = logits.float().softmax(dim=-1) @ maps.T
        distance = torch.cdist(predicted, boxes, p=1)
        corners = [box_convert(b, "cxcywh", "xyxy") for b in (predicted, boxes)]
        giou = generalized_box_iou(*corners)
        return self.l1_cost * distance - self.class_cost * probability - self.giou_cost * giou


def _linear_sum_assignment():  # noqa: ANN202
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise OVDError(
            "Training MAVL matches queries and objects with scipy: pip install scipy."
        ) from error
    return linear_sum_assignment
