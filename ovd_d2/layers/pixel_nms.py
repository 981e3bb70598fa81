"""Suppression of duplicates among boxes that count whole pixels."""

from torch import Tensor
from torchvision.ops import batched_nms, nms


def pixel_nms(
    boxes: Tensor, scores: Tensor, threshold: float, groups: Tensor | None = None
) -> Tensor:
    """Greedy suppression where a box from x0 to x1 is ``x1 - x0 + 1`` wide, as in Pascal VOC.

    Letters: R boxes.

    Args:
        boxes: (R, 4) x0 y0 x1 y1, whole numbers or not; they may lie outside the image.
        scores: (R,).
        threshold: of two boxes with a higher IoU the lower-scored goes.
        groups: (R,) int64, boxes of different groups do not suppress each other; None: one group.

    Returns:
        int64 places of the boxes that stay, highest score first, ties in their order.
    """
    shifted = boxes.double()
    if len(boxes):
        shifted = shifted - shifted.min()  # batched_nms keeps groups apart by what is above 0
    shifted[:, 2:] += 1
    if groups is None:
        return nms(shifted, scores.double(), threshold)
    return batched_nms(shifted, scores.double(), groups, threshold)
