"""From scores to detections, in operations whose graph holds for every picture and vocabulary.

Called as they are they run in Python; a traced graph takes them in with their branches and loops.

Letters: R regions, K classes, T pairs of a region and a class.
"""

import torch
from torch import Tensor
from torchvision.ops import nms


@torch.jit.script_if_tracing
def best_pairs(scores: Tensor, threshold: float, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs that score best.

    Args:
        scores: (R, K) float.
        threshold: scores must be above it.
        most: how many pairs at most.

    Returns:
        (T,) regions and classes, int64, and their scores, best first.
    """
    values, places = scores.flatten().topk(min(scores.numel(), most))
    found = values > threshold
    values, places = values[found], places[found]
    count = scores.shape[1]
    return torch.div(places, count, rounding_mode="floor"), places % count, values


@torch.jit.script_if_tracing
def class_wise_nms(
    boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float, shifted_up_to: int
) -> Tensor:
    """Places of the pairs that no better pair of their class overlaps.

    Args:
        boxes: (T, 4) float, absolute x0 y0 x1 y1, within the picture.
        scores: (T,), best first.
        classes: (T,) int64.
        threshold: of two boxes of a class with an IoU above it, the lower-scored one goes.
        shifted_up_to: that many pairs go through one NMS, boxes of class k shifted by k times the
            picture's extent (and so rounded), as torchvision's ``batched_nms`` does with few; more
            go class by class.

    Returns:
        int64, ascending.
    """
    if boxes.numel() == 0:
        return torch.empty((0,), dtype=torch.int64, device=boxes.device)
    if boxes.shape[0] <= shifted_up_to:
        offsets = classes.to(boxes) * (boxes.max() + torch.tensor(1).to(boxes))
        # The type and rank of what nms gives have to be said to the ONNX exporter, here and below.
        return nms(boxes + offsets[:, None], scores, threshold).to(torch.int64).reshape(-1)
    keep = torch.zeros_like(classes, dtype=torch.bool)
    for k in torch.unique(classes):
        rows = torch.nonzero(classes == k).reshape(-1)
        kept = nms(boxes[rows], scores[rows], threshold).to(torch.int64).reshape(-1)
        keep[rows[kept]] = True
    return torch.nonzero(keep).reshape(-1)
