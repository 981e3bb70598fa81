"""Scored boxes of dense heads, and the detections that are left of them.

Letters: N images, R candidates of an image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import batched_nms


class Candidates(NamedTuple):
    """Scored boxes of one image before suppression: (R, 4) pixels, (R,) in [0, 1], (R,) int64."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor


@torch.no_grad()
def without_duplicates(
    candidates: Sequence[Candidates],
    image_sizes: Sequence[tuple[int, int]],
    nms_threshold: float,
    most: int,
) -> list[Instances]:
    """The best detections of each image, highest score first, no two of a class at one place.

    Args:
        candidates: per image.
        image_sizes: N (height, width).
        nms_threshold: boxes of a class with a higher IoU are suppressed.
        most: of an image; -1: all (``TEST.DETECTIONS_PER_IMAGE``).

    Returns:
        Per image ``pred_boxes``, ``scores``, ``pred_classes``, in pixels of the resized image.
    """
    results = []
    for (boxes, scores, classes), size in zip(candidates, image_sizes):
        # Double: multiples of class numbers are added to coordinates, which fp32 would round.
        kept = batched_nms(boxes.double(), scores.double(), classes, nms_threshold)
        kept = kept if most < 0 else kept[:most]
        fields = {
            "pred_boxes": Boxes(boxes[kept]),
            "scores": scores[kept],
            "pred_classes": classes[kept],
        }
        results.append(Instances(size, **fields))
    return results


def clip_to_image(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(R, 4) into an image of (height, width); a box beyond its border becomes the pixel next to
    it, not an empty box."""
    height, width = size  # tensors while a graph is traced
    x0, y0 = boxes[:, 0].clamp(0, width - 1), boxes[:, 1].clamp(0, height - 1)
    x1, y1 = boxes[:, 2].clamp(1, width), boxes[:, 3].clamp(1, height)
    return torch.stack([x0, y0, x1, y1], dim=1)
