"""Losses of matched queries: which words, and which box (MDETR, Kamath et al. 2021, section 2.2).

Letters: N images, Q queries, C columns of the logits, the last of them "no object"; R matched
queries over the batch. Boxes are cx cy w h, relative to the image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou_loss, sigmoid_focal_loss


def soft_token_cross_entropy(
    logits: Tensor, targets: Tensor, *, no_object_weight: float = 0.1
) -> Tensor:
    """Soft token prediction: ``-sum_c target_c log softmax_c`` of every query, *summed*.

    Targets are 0 or 1 and not normalised, as in the public code: a phrase of three tokens weighs
    three times as much as one of one token. A row of zeros (the phrase has no token) adds nothing.

    Args:
        logits: (N, Q, C) float.
        targets: (N, Q, C) float; queries without an object have a 1 in the last column.
        no_object_weight: of those queries.

    Returns:
        Scalar fp32.
    """
    each = -(targets * logits.float().log_softmax(dim=-1)).sum(dim=-1)
    return (each * torch.where(targets[..., -1] > 0, no_object_weight, 1.0)).sum()


def two_column_focal_loss(
    logits: Tensor, targets: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017) of every query and column, *summed*; "no object" is a
    column as any other. What the detector without language is trained on.

    Args:
        logits: (N, Q, C) float.
        targets: (N, Q, C) float in 0..1.
        alpha: weight of the ones; 1 - alpha of the zeros.
        gamma: exponent of (1 - p).

    Returns:
        Scalar fp32.
    """
    return sigmoid_focal_loss(logits.float(), targets, alpha=alpha, gamma=gamma, reduction="sum")


def matched_box_losses(boxes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """L1 distance, and 1 - GIoU (Rezatofighi et al. 2019), of R pairs, *summed*.

    Args:
        boxes: (R, 4) cx cy w h, predicted.
        targets: (R, 4).

    Returns:
        Two scalars fp32; 0 with a gradient path if R = 0.
    """
    boxes = boxes.float()
    corners = [box_convert(b, "cxcywh", "xyxy") for b in (boxes, targets)]
    giou = generalized_box_iou_loss(*corners, reduction="sum")
    return F.l1_loss(boxes, targets, reduction="sum"), giou
