"""Choice of pseudo boxes (RKD, sections 3.2 and 3.3; MAVL, section 3).

Letters: Ri boxes that a detector gives for a query on image i.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image, nms

Found = tuple[Tensor, Tensor]
"""Boxes (Ri, 4) float32, absolute xyxy in pixels of the image, and scores (Ri,) float32, higher is
better, best first."""

CLASS_QUERY = "every {}"
# As RKD's released script asks; MAVL's own has "entities & objects" in the last two.
OBJECT_QUERIES = (
    "all objects",
    "all entities",
    "all visible objects and entities",
    "all obscure objects and entities",
)
BOXES_PER_QUERY = 50
NMS_IOU = 0.5
MIN_SIDE = 0.1  # pixels: narrower boxes are none; label files keep two decimals


def cleaned(found: Found, size: tuple[int, int]) -> Found:
    """``found`` clipped to an image of ``size`` (height, width), without boxes narrower then
    than 0.1 pixel and without boxes or scores that are not finite; best first, on the CPU."""
    boxes, scores = (values.detach().float().cpu() for values in found)
    boxes = clip_boxes_to_image(boxes.reshape(-1, 4), size)
    kept = (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(dim=1) & scores.isfinite()
    kept &= boxes.isfinite().all(dim=1)
    boxes, scores = boxes[kept], scores[kept]
    order = scores.argsort(descending=True, stable=True)
    return boxes[order], scores[order]


def choose_for_label(
    found: Found, size: tuple[int, int], topk: int = 1, min_score: float | None = None
) -> Found:
    """The ``topk`` best boxes of one label.

    Args:
        found: what the detector gives for the label.
        size: (height, width) of the image.
        topk: boxes to keep; with more than one, boxes that overlap a better one by an IoU above
            0.5 go first.
        min_score: only boxes that score more than this; None: all.

    Returns:
        at most ``topk`` boxes; none where nothing was found.
    """
    if topk == 1:
        return choose_best(found, size, topk, min_score)
    boxes, scores = choose_best(found, size, None, min_score)
    kept = nms(boxes, scores, NMS_IOU)[:topk]
    return boxes[kept], scores[kept]


def choose_best(
    found: Found, size: tuple[int, int], topk: int | None, min_score: float | None = None
) -> Found:
    """The ``topk`` best boxes of a list without duplicates.

    Args:
        found: what the detector gives.
        size: (height, width) of the image.
        topk: boxes to keep; None: all.
        min_score: only boxes that score more than this; None: all.
    """
    boxes, scores = cleaned(found, size)
    if min_score is not None:
        boxes, scores = boxes[scores > min_score], scores[scores > min_score]
    return boxes[:topk], scores[:topk]


def choose_for_phrase(found: Found, size: tuple[int, int], least: float) -> Found:
    """All boxes of one phrase that score ``least`` or more (GLIP, section 3.3), best first.

    Args:
        found: what the detector gives for the phrase, without duplicates.
        size: (height, width) of the image.
        least: score that a box must reach.
    """
    boxes, scores = cleaned(found, size)
    return boxes[scores >= least], scores[scores >= least]


def choose_objects(
    found: Sequence[Found],
    size: tuple[int, int],
    topk: int = 5,
    min_score: float | None = None,
) -> Found:
    """The ``topk`` best boxes over all queries: 50 of each, pooled, class-agnostic NMS at 0.5.

    Args:
        found: per query.
        size: (height, width) of the image.
        topk: boxes to keep.
        min_score: only boxes that score more than this; None: all.
    """
    pairs = [cleaned(one, size) for one in found]
    boxes = torch.cat([boxes[:BOXES_PER_QUERY] for boxes, _ in pairs] or [torch.zeros(0, 4)])
    scores = torch.cat([scores[:BOXES_PER_QUERY] for _, scores in pairs] or [torch.zeros(0)])
    if min_score is not None:
        boxes, scores = boxes[scores > min_score], scores[scores > min_score]
    kept = nms(boxes, scores, NMS_IOU)[:topk]
    return boxes[kept], scores[kept]
