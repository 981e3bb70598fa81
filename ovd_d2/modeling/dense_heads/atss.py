"""Adaptive training sample selection (Zhang et al. 2020, arXiv 1912.02424): which anchors learn
which object.

Letters: A anchors of all levels, G objects of an image, C candidates per object.
"""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from ovd_d2.losses import between_pixel_centres

_CENTRE_MARGIN = 0.01  # pixels that an anchor's centre must be inside its object
_ROUNDING = 1e-6  # of IoU: where all candidates have the same, their mean may round above it


@torch.no_grad()
def atss_assign(
    anchors: Sequence[Tensor],
    boxes: Tensor,
    *,
    per_level: int = 9,
    usable: Tensor | None = None,
) -> Tensor:
    """The object of every anchor.

    Candidates of an object are the ``per_level`` anchors of each level whose centres are nearest to
    its own. They match if their IoU reaches mean + (unbiased) standard deviation over the object's
    candidates and their centre is inside it. An anchor that matches several objects takes the one
    of highest IoU.

    Args:
        anchors: per level (A_l, 4) x1 y1 x2 y2 in pixels.
        boxes: (G, 4) of the objects; G may be 0.
        per_level: candidates per object and level; all anchors of a level that has fewer.
        usable: (A,) bool, False on anchors to be treated as if they were not there (those in the
            padding of a batch); None: all are.

    Returns:
        (A,) int64: index of the object, -1 for background.
    """
    every = torch.cat(list(anchors))
    if not len(boxes):
        return torch.full((len(every),), -1, dtype=torch.int64, device=every.device)
    centres = (every[:, :2] + every[:, 2:]) / 2
    distance = ((boxes[:, None, :2] + boxes[:, None, 2:]) / 2 - centres).square().sum(dim=2)
    if usable is not None:
        distance = distance.masked_fill(~usable, torch.inf)

    nearest, start = [], 0
    for of_level in distance.split([len(level) for level in anchors], dim=1):
        count = min(per_level, of_level.shape[1])
        nearest.append(of_level.topk(count, dim=1, largest=False).indices + start)
        start += of_level.shape[1]
    candidates = torch.cat(nearest, dim=1)  # (G, C)
    counted = distance.gather(1, candidates).isfinite()

    iou = pairwise_iou(Boxes(boxes), Boxes(every)).gather(1, candidates)
    number = counted.sum(dim=1, keepdim=True)
    mean = (iou * counted).sum(dim=1, keepdim=True) / number.clamp(min=1)
    variance = ((iou - mean).square() * counted).sum(dim=1, keepdim=True)
    threshold = mean + (variance / (number - 1).clamp(min=1)).sqrt()

    inner, points = between_pixel_centres(boxes)[:, None], centres[candidates]
    margin = torch.cat([points - inner[..., :2], inner[..., 2:] - points], dim=2).amin(dim=2)
    matched = counted & (iou >= threshold - _ROUNDING) & (margin > _CENTRE_MARGIN)
    claims = iou.new_full(distance.shape, -1.0)
    claims.scatter_(1, candidates, iou.where(matched, -1.0))
    highest, objects = claims.max(dim=0)
    return objects.where(highest >= 0, -1)
