"""Region classification when some classes must not take part in training.

Letters: R regions over the batch, K classes. Class K is background.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_softmax_cross_entropy(logits: Tensor, targets: Tensor, excluded: Tensor) -> Tensor:
    """ViLD's text loss (section 3.2): cross entropy over background and the *base* classes.

    Excluded classes are out of the softmax's denominator (the released TPU code multiplies their
    logits by zero instead, which leaves exp(0) = 1 each there; the paper's definition is used).
    Regions whose target is excluded are ignored.

    Args:
        logits: (R, K + 1) float, logit scale applied, background last.
        targets: (R,) int64 in [0, K].
        excluded: (K,) bool, classes held out of training.

    Returns:
        Scalar, mean over the regions that count; 0 (with a gradient path) where none does.
    """
    if logits.numel() == 0:
        return logits.sum() * 0.0
    column = F.pad(excluded, (0, 1))  # background always takes part
    targets = targets.masked_fill(column[targets], -100)
    logits = logits.masked_fill(column, float("-inf"))
    counted = (targets >= 0).sum().clamp(min=1)
    return F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum") / counted


def weighted_sigmoid_cross_entropy(logits: Tensor, targets: Tensor, class_weight: Tensor) -> Tensor:
    """RKD's and Detic's box loss: one sigmoid per class, background a row of zeros.

    Args:
        logits: (R, K + 1) float, logit scale applied; the last column (background) is not read.
        targets: (R,) int64 in [0, K].
        class_weight: (K,) float; 0 takes a class out, also where it is the target.

    Returns:
        Scalar: sum over regions and classes, divided by R; 0 (with a gradient path) if R = 0.
    """
    logits = logits[:, :-1]
    if logits.numel() == 0:
        return logits.sum() * 0.0
    num_regions, num_classes = logits.shape
    one_hot = F.one_hot(targets, num_classes + 1)[:, :-1].to(logits.dtype)
    loss = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none")
    return (loss * class_weight).sum() / num_regions


def federated_class_mask(targets: Tensor, sampling_weight: Tensor, num_classes_kept: int) -> Tensor:
    """Classes that take part in LVIS's federated loss for this batch (Detic, CenterNet2).

    All classes among the targets, filled up with sampled negatives to ``num_classes_kept`` (the
    background target counts as one, as in the public code). Classes of weight zero are never
    drawn, even when fewer than asked for are left.

    Args:
        targets: (R,) int64 in [0, K].
        sampling_weight: (K,) float >= 0, usually image count ** 0.5, 0 for held-out classes.
        num_classes_kept: how many classes to keep at least, where there are as many.

    Returns:
        (K,) float of zeros and ones.
    """
    num_classes = len(sampling_weight)
    present = F.one_hot(targets, num_classes + 1).amax(dim=0) if len(targets) else None
    mask = sampling_weight.new_zeros(num_classes)
    num_present = 0
    if present is not None:
        mask = present[:-1].to(sampling_weight.dtype)
        num_present = int(present.sum())
    candidates = sampling_weight.float() * (1 - mask)
    num_drawn = min(num_classes_kept - num_present, int((candidates > 0).sum()))
    if num_drawn > 0:
        mask[torch.multinomial(candidates, num_drawn, replacement=False)] = 1
    return mask
