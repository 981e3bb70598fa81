"""The losses of a set of queries over all layers that predict (MDETR; MAVL, section 3).

Letters: N images, Q queries, C columns of the logits, the last of them "no object"; L tokens, Gi
objects of image i. Boxes are cx cy w h, relative to the image.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ovd_d2.errors import OVDError
from ovd_d2.layers.process_mean import mean_over_processes
from ovd_d2.losses import matched_box_losses, soft_token_cross_entropy, two_column_focal_loss
from ovd_d2.modeling.hungarian_matching import HungarianMatcher

KINDS = ("soft_token", "focal")


class SetCriterion:
    """Matches the queries of each layer with the objects, anew, and compares them.

    All losses are divided by the number of objects of the batch, averaged over the processes and
    at least 1. Everything is computed in fp32.
    """

    def __init__(
        self,
        *,
        matcher: HungarianMatcher,
        kind: str = "soft_token",
        no_object_weight: float = 0.1,
        token_weight: float = 1.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
    ) -> None:
        """
        Args:
            matcher: of queries and objects.
            kind: "soft_token", or "focal" for two columns, object and none.
            no_object_weight: of queries without an object in the soft token loss.
            token_weight: of that loss, or of the focal loss.
            l1_weight: of the L1 loss of boxes.
            giou_weight: of the GIoU loss of boxes.

        Raises:
            OVDError: an unknown ``kind``.
        """
        if kind not in KINDS:
            raise OVDError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}.")
        self.matcher = matcher
        self.kind = kind
        self.no_object_weight = no_object_weight
        self.token_weight = token_weight
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight

    def __call__(
        self, outputs: dict[str, Any], maps: Sequence[Tensor], boxes: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """
        Args:
            outputs: ``pred_logits`` (N, Q, C) and ``pred_boxes`` (N, Q, 4) of the last layer, and
                ``aux_outputs``, a list of such dicts of the layers before, first one first.
            maps: per image (Gi, L) bool, L < C, the tokens of each object's phrase; for "focal"
                a column of True.
            boxes: per image (Gi, 4) float.

        Returns:
            "loss_token", "loss_box_l1", "loss_box_giou" of the last layer, and with "_k" behind
            those of layer k; weights applied.
        """
        with torch.autocast(boxes[0].device.type, enabled=False):
            return self._losses(outputs, maps, boxes)

    def _losses(
        self, outputs: dict[str, Any], maps: Sequence[Tensor], boxes: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        before = outputs.get("aux_outputs", [])
        layers = [(one["pred_logits"], one["pred_boxes"]) for one in (*before, outputs)]
        columns = layers[0][0].shape[-1]
        wide = [_in_columns(one, columns, layers[0][1]) for one in maps]
        boxes = [one.float() for one in boxes]
        number = mean_over_processes(layers[0][1].new_tensor(float(sum(map(len, boxes)))))
        number = number.float().clamp(min=1)
        losses = {}
        for k, (layer, matches) in enumerate(zip(layers, self.matcher(layers, wide, boxes))):
            suffix = "" if k == len(before) else f"_{k}"
            for name, loss in self._of_layer(layer, matches, wide, boxes).items():
                losses[f"{name}{suffix}"] = loss / number
        return losses

    def _of_layer(
        self,
        layer: tuple[Tensor, Tensor],
        matches: Sequence[tuple[Tensor, Tensor]],
        maps: Sequence[Tensor],
        boxes: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        logits, predicted = layer
        targets = torch.zeros_like(logits, dtype=torch.float32)
        targets[..., -1] = 1
        pairs = []
        for i, (queries, objects) in enumerate(matches):
            queries, objects = queries.to(logits.device), objects.to(logits.device)
            targets[i, queries] = maps[i][objects]
            pairs.append((predicted[i, queries], boxes[i][objects]))
        l1, giou = matched_box_losses(*(torch.cat(side) for side in zip(*pairs)))
        if self.kind == "focal":
            token = two_column_focal_loss(logits, targets)
        else:
            token = soft_token_cross_entropy(
                logits, targets, no_object_weight=self.no_object_weight
            )
        return {
            "loss_token": self.token_weight * token,
            "loss_box_l1": self.l1_weight * l1,
            "loss_box_giou": self.giou_weight * giou,
        }


def _in_columns(maps: Tensor, columns: int, like: Tensor) -> Tensor:
    """(Gi, L) bool as (Gi, C) float; tokens that have no column are left out."""
    wide = like.new_zeros((len(maps), columns), dtype=torch.float32)
    width = min(maps.shape[1], columns - 1)
    wide[:, :width] = maps[:, :width].to(wide)
    return wide
