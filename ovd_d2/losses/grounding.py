"""Losses of a dense grounding head: words at anchors, boxes, centerness (GLIP, section 3.1; ATSS).

Letters: N images, A anchors, L tokens, R matched anchors over the batch. Boxes are x1 y1 x2 y2 in
pixels, width = x2 - x1.
"""

import torch
import torch.nn.functional as F
from fvcore.nn import giou_loss
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss


def between_pixel_centres(boxes: Tensor) -> Tensor:
    """(..., 4) boxes, half a pixel smaller on each side: from the centre of the first pixel to that
    of the last. One narrower than a pixel gets the width 0.

    The public code stores these corners and measures GIoU, centerness and "the anchor's centre is
    inside" on them, IoU and box deltas on the whole box.
    """
    first, last = boxes[..., :2] + 0.5, boxes[..., 2:] - 0.5
    return torch.cat([first, torch.maximum(first, last)], dim=-1)


def token_focal_loss(
    logits: Tensor, targets: Tensor, text_mask: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017) of every anchor with every token, *summed*.

    Args:
        logits: (N, A, L) float, scaled and biased.
        targets: (N, A, L) bool, True on the tokens of the anchor's phrase.
        text_mask: (N, L) bool, True on tokens that take part; padding does not.
        alpha: weight of the positives; 1 - alpha of the negatives.
        gamma: exponent of (1 - p).

    Returns:
        Scalar fp32.
    """
    logits = logits.float()
    loss = sigmoid_focal_loss(logits, targets.to(logits.dtype), alpha=alpha, gamma=gamma)
    return (loss * text_mask[:, None]).sum()


def centerness_targets(anchors: Tensor, boxes: Tensor) -> Tensor:
    """How central the anchor's centre is in its box (FCOS, equation 3).

    Args:
        anchors: (R, 4).
        boxes: (R, 4), of the matched object.

    Returns:
        (R,) in [0, 1]: 1 in the middle, 0 on the border and outside.
    """
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    boxes = between_pixel_centres(boxes)
    before, after = centres - boxes[:, :2], boxes[:, 2:] - centres
    ratio = torch.minimum(before, after).clamp(min=0) / torch.maximum(before, after).clamp(min=1e-6)
    return ratio.prod(dim=1).sqrt()


def weighted_giou_loss(boxes: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """``sum_r w_r (1 - GIoU_r)`` (Rezatofighi et al. 2019), a scalar; 0 with a gradient path if
    R = 0.

    Args:
        boxes: (R, 4) float, decoded.
        targets: (R, 4) float.
        weights: (R,) float, here the centerness targets.
    """
    boxes, targets = between_pixel_centres(boxes), between_pixel_centres(targets)
    return (giou_loss(boxes, targets) * weights).sum()


def centerness_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy of (R,) logits with (R,) targets in [0, 1], *summed*."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
