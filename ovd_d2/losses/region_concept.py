"""Alignment of regions with the concepts of a batch (DetCLIPv2, section 3.2).

Letters: N images, A anchors, M concepts of the batch, D embedding width.
"""

import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_CHECKPOINT = {"use_reentrant": False, "preserve_rng_state": False}


def concept_focal_loss(
    regions: Tensor,
    concepts: Tensor,
    bias: Tensor,
    positives: tuple[Tensor, Tensor, Tensor],
    counted: Tensor | None = None,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    at_once: int = 1024,
) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017) of every anchor with every concept, *summed*.

    The logit is ``regions . concepts + bias``. Every pair is taken as a negative first, ``at_once``
    concepts at a time, whose logits are computed again in backward; positives are then corrected.
    So memory does not grow with M.

    Args:
        regions: (N, A, D) float, scaled.
        concepts: (M, D) float; no two are the same concept.
        bias: scalar.
        positives: image, anchor and concept of each positive pair, int64, no pair twice.
        counted: (N, M) bool, False where it is not known whether the image shows the concept; such
            pairs take no part. None: all do.
        alpha: weight of the positives; 1 - alpha of the negatives.
        gamma: exponent of (1 - p).
        at_once: concepts whose N x A logits are held at a time.

    Returns:
        Scalar fp32.
    """
    regions, concepts, bias = regions.float(), concepts.float(), bias.float()
    total = regions.sum() * 0.0 + bias * 0.0
    for start in range(0, len(concepts), at_once):
        some = concepts[start : start + at_once]
        weights = None if counted is None else counted[:, start : start + at_once]
        given = regions, some, bias, weights, alpha, gamma
        if len(concepts) <= at_once:
            total = total + _as_negatives(*given)
        else:
            total = total + checkpoint(_as_negatives, *given, **_CHECKPOINT)
    images, anchors, columns = positives
    logits = (regions[images, anchors] * concepts[columns]).sum(dim=1) + bias
    correction = alpha * _focal(-logits, gamma) - (1 - alpha) * _focal(logits, gamma)
    if counted is not None:
        correction = correction * counted[images, columns]
    return total + correction.sum()


def _as_negatives(
    regions: Tensor, concepts: Tensor, bias: Tensor, counted: Tensor | None, alpha: float,
    gamma: float,
) -> Tensor:  # fmt: skip
    losses = _focal(regions @ concepts.T + bias, gamma)
    if counted is not None:
        losses = losses * counted[:, None]
    return (1 - alpha) * losses.sum()


def _focal(logits: Tensor, gamma: float) -> Tensor:
    """Of negatives, without alpha; of positives with the opposite logits."""
    return logits.sigmoid() ** gamma * F.softplus(logits)
