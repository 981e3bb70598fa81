"""Detection from class-agnostic boxes and very many classes: the top pairs first, then NMS.

Detectron2's ``fast_rcnn_inference`` copies a box for every (proposal, class) pair above the score
threshold, up to R x K x 4 numbers, and runs NMS once per class. But it returns the ``topk`` best
only, and these depend on the best-scored pairs alone.

Letters: R proposals of an image, K classes, T pairs (proposal, class) above the score threshold.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ovd_d2.errors import OVDError

from .blocked_scores import RUN, BlockedScores, run_maxima

_BLOCK = RUN  # scores per block whose maxima bound the top pairs from below
_TOPK_AT_ONCE = 1 << 20  # numbers
_CHUNK = 1024  # pairs taken through NMS at a time: masks of at most 1024 x 1024


def top_pairs_inference(
    boxes: Sequence[Tensor],
    scores: Sequence[Tensor | BlockedScores],
    image_shapes: Sequence[tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[list[Instances], list[Tensor]]:
    """The arguments and results of Detectron2's ``fast_rcnn_inference``, for boxes (R, 4).

    *Why the top pairs suffice.* Order all T pairs by score, ties by (proposal, class). Greedy NMS
    keeps a pair unless a pair of its class that comes before it is kept and overlaps it. So what
    is kept of the first M pairs depends on these M alone, for any M; it is exactly the beginning
    of what is kept of all T. Hence M grows, from a few thousand, until ``topk_per_image`` pairs
    of the first M are kept, or M = T.

    *Where the result is Detectron2's, bit by bit.* torchvision's ``batched_nms`` has two ways:

    * T <= 1000 on a CPU (25,000 elsewhere): it shifts the boxes of class k by k times the image's
      extent and so rounds them: to 1 pixel from offset 2^23 on, that is from about class 10,000
      on. Here all T pairs are given to that very function: the same, rounding included.
    * More pairs: NMS per class on the boxes as they are, in float32. Here overlaps are computed by
      the same float32 operations, and compared with the threshold in the same precision.

    *Where it may differ* (only with more pairs than that):

    * Among detections of exactly equal score Detectron2's last sort is not stable: their order,
      and which of them are cut off at ``topk_per_image``, is anyone's. Here it is
      (proposal, class). Suppression among equal scores is in this order in both.
    * torchvision's GPU kernel, and builds for CPUs other than x86-64, may fuse a multiplication
      and an addition: an overlap within one rounding error of the threshold may then fall on the
      other side of it. Boxes with integer coordinates below 4096 are safe.

    With ``topk_per_image`` < 0 every pair may be returned, and Detectron2's NMS sees all T.
    Otherwise the largest temporaries are masks, R x K bytes; no float copy of the scores.

    Args:
        boxes: per image (R, 4) float, absolute x0 y0 x1 y1; clipped to the image here.
        scores: per image (R, K + 1) probabilities, the last column background (ignored, but
            Detectron2 drops a proposal with a box or any score, this one too, not finite), or
            scores (R, K) that are computed in blocks.
        image_shapes: per image (height, width).
        score_thresh: pairs with a score above it are considered.
        nms_thresh: of two boxes of a class with an IoU above it, the lower-scored one goes.
        topk_per_image: most detections per image; < 0: all.

    Returns:
        Per image ``Instances`` with ``pred_boxes``, ``scores`` (descending) and ``pred_classes``
        (int64 in [0, K)), and per image the int64 proposal of each detection, counted, as in
        Detectron2, without the dropped proposals.

    Raises:
        OVDError: boxes are not (R, 4).
    """
    results = [
        _single_image(*image, score_thresh, nms_thresh, topk_per_image)
        for image in zip(boxes, scores, image_shapes)
    ]
    return [instances for instances, _ in results], [rows for _, rows in results]


def of_first_classes(scores: Tensor | BlockedScores, count: int) -> Tensor | BlockedScores:
    """Scores of the first ``count`` classes, as :func:`top_pairs_inference` takes them: nothing is
    computed again, and what shares a probability with the others still does.

    Args:
        scores: see there, of K classes.
        count: 1 to K.
    """
    if isinstance(scores, BlockedScores):
        return scores.first(count)
    return scores[:, : count + 1]  # of the last column it is only looked at whether it is finite


def _single_image(
    boxes: Tensor,
    scores: Tensor | BlockedScores,
    image_shape: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk: int,
) -> tuple[Instances, Tensor]:
    if boxes.shape[1:] != (4,):
        raise OVDError(
            f"Boxes of shape {tuple(boxes.shape)} belong to classes: set "
            "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True."
        )
    in_blocks = isinstance(scores, BlockedScores)
    finite = scores.is_finite() if in_blocks else _finite_rows(scores)
    valid = torch.isfinite(boxes).all(dim=1) & finite
    if not valid.all():
        boxes = boxes[valid]
        scores = scores.of_rows(valid) if in_blocks else scores[valid]
    if not in_blocks:
        scores = scores[:, :-1]
    clipped = Boxes(boxes)
    clipped.clip(image_shape)
    boxes = clipped.tensor

    rows, classes, found = _detect(boxes, scores, score_thresh, nms_thresh, topk)
    result = Instances(image_shape)
    result.pred_boxes = Boxes(boxes[rows])
    result.scores = found
    result.pred_classes = classes
    return result, rows


def _detect(
    boxes: Tensor,
    scores: Tensor | BlockedScores,
    score_thresh: float,
    nms_thresh: float,
    topk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Proposals, classes and scores of the detections, best first.

    Args:
        boxes: (R, 4) float32, finite and clipped. scores: (R, K) finite.
    """
    in_blocks = isinstance(scores, BlockedScores)
    every = len(scores) * (scores.num_classes if in_blocks else scores.shape[1])
    shifted = _shifted_nms_limit(boxes)
    at_least = max(2 * _CHUNK, 4 * topk, shifted + 1) if topk >= 0 else max(1, every)
    while True:
        top_pairs = _top_pairs_in_blocks if in_blocks else _top_pairs
        rows, classes, found, complete = top_pairs(scores, score_thresh, at_least)
        found, order = found.sort(descending=True, stable=True)
        rows, classes = rows[order], classes[order]
        if complete and (topk < 0 or len(rows) <= shifted):
            keep = batched_nms(boxes[rows], found.float(), classes, nms_thresh)
            keep = keep.sort().values  # its own order of equal scores is not stable
            keep = keep[:topk] if topk >= 0 else keep
            return rows[keep], classes[keep], found[keep]
        keep = _class_wise_nms(boxes[rows], classes, nms_thresh, topk)
        if complete or len(keep) >= topk:
            return rows[keep], classes[keep], found[keep]
        at_least *= 8


def _shifted_nms_limit(boxes: Tensor) -> int:
    """Most pairs for which ``torchvision.ops.batched_nms`` shifts boxes by class (4 numbers each;
    older releases have 20,000 for 100,000: with more they do what is done here)."""
    return (4000 if boxes.device.type == "cpu" else 100_000) // 4


def _finite_rows(scores: Tensor) -> Tensor:
    """(R,) bool. A finite sum proves a row finite, in one pass and without a mask of R x K."""
    finite = torch.isfinite(scores.sum(dim=1))
    if not finite.all():  # not finite, or too large a sum: look at each number
        doubtful = ~finite
        finite[doubtful] = torch.isfinite(scores[doubtful]).all(dim=1)
    return finite


def _top_pairs(
    scores: Tensor, threshold: float, at_least: int
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """The first pairs above ``threshold`` in the order (score descending, proposal, class).

    The ``at_least``-th highest of the maxima of blocks of scores bounds the wanted pairs from
    below, since that many blocks have a pair that reaches it; and only blocks whose maximum
    reaches it need another look. So the R x K scores are read once and never sorted.

    Args:
        scores: (R, K).
        threshold: pairs above it count.
        at_least: how many are wanted, > 0.

    Returns:
        Proposals and classes, int64, sorted by (proposal, class), their scores, and whether these
        are surely all pairs above the threshold. If not, they are at least ``at_least``, and no
        pair left out comes before one of them.
    """
    num_classes = scores.shape[1]
    block = min(_BLOCK, scores.numel() // (8 * at_least))
    maxima = run_maxima(scores, block) if block > 0 else scores[:0]
    bound = _bound(maxima, threshold, at_least)
    if bound is None:
        rows, classes = (scores > threshold).nonzero(as_tuple=True)
        return rows, classes, scores[rows, classes], True

    def of_blocks(rows: Tensor, blocks: Tensor) -> Tensor:
        classes = blocks[:, None] * block + torch.arange(block, device=scores.device)
        values = scores[rows[:, None], classes.clamp(max=num_classes - 1)]
        return values.masked_fill(classes >= num_classes, -torch.inf)  # the last one's overhang

    return *_pairs_from(bound, maxima, of_blocks, block, at_least), False


def _top_pairs_in_blocks(
    scores: BlockedScores, threshold: float, at_least: int
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """As :func:`_top_pairs`, of scores that are computed again where they are looked at."""
    bound = _bound(scores.maxima, threshold, at_least)
    if bound is None:
        bound = scores.maxima.new_tensor(threshold)
        return *_pairs_from(bound, scores.maxima, scores.of_runs, RUN, 0), True
    return *_pairs_from(bound, scores.maxima, scores.of_runs, RUN, at_least), False


def _bound(maxima: Tensor, threshold: float, at_least: int) -> Tensor | None:
    """The ``at_least``-th highest of (R, blocks) maxima; None if ``threshold`` is as high, or there
    are not that many."""
    if maxima.numel() <= at_least:
        return None
    best = maxima[:0].flatten()
    for some in maxima.split(max(_TOPK_AT_ONCE // maxima.shape[1], 1)):  # topk makes large copies
        best = torch.cat([best, some.flatten()])
        best = best.topk(min(at_least, len(best)), sorted=False).values
    bound = best.min()
    return bound if bound > threshold else None


def _pairs_from(
    bound: Tensor,
    maxima: Tensor,
    of_blocks: Callable[[Tensor, Tensor], Tensor],
    block: int,
    at_least: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Proposals, classes and scores of all pairs above ``bound`` and, of those equal to it, all in
    the first rows: in as many rows as make ``at_least`` pairs (all scores may be equal).

    Args:
        bound: of the scores.
        maxima: (R, blocks) of the scores.
        of_blocks: rows (T,) and blocks (T,) -> the (T, block) scores in them, a negative number
            beyond the last class.
        block: classes in a block.
        at_least: how many pairs.
    """
    above, tied = maxima > bound, maxima == bound
    num_tied = tied.sum(dim=1)
    tied_before = num_tied.cumsum(dim=0) - num_tied
    take_tied = tied_before < at_least - above.sum()  # (R,)
    rows, blocks = (above | (tied & take_tied[:, None])).nonzero(as_tuple=True)
    values = of_blocks(rows, blocks)
    selected = (values > bound) | ((values == bound) & take_tied[rows][:, None])
    places, columns = selected.nonzero(as_tuple=True)
    return rows[places], blocks[places] * block + columns, values[places, columns]


def _class_wise_nms(boxes: Tensor, classes: Tensor, threshold: float, limit: int) -> Tensor:
    """Greedy NMS within each class, without a loop over classes.

    Args:
        boxes: (M, 4) float32, best first.
        classes: (M,) int64.
        threshold: IoU above which the later box of a class goes.
        limit: stop when this many are kept.

    Returns:
        int64 indices of the first ``limit`` boxes kept, or of all kept, ascending.
    """
    largest_allowed = _comparable(threshold, boxes.device)
    kept = torch.zeros(0, dtype=torch.int64, device=boxes.device)
    for chunk in torch.arange(len(boxes), device=boxes.device).split(_CHUNK):
        if len(kept) >= limit:
            break
        _, late = _overlapping(boxes, classes, kept, chunk, largest_allowed)
        free = torch.ones(len(chunk), dtype=torch.bool, device=boxes.device)
        free[late] = False
        chunk = chunk[free]
        early, late = _overlapping(boxes, classes, chunk, chunk, largest_allowed)
        kept = torch.cat([kept, chunk[_greedy(len(chunk), early, late)]])
    return kept[:limit]


def _overlapping(
    boxes: Tensor, classes: Tensor, first: Tensor, second: Tensor, largest_allowed: float
) -> tuple[Tensor, Tensor]:
    """Positions (i, j) in ``first`` and ``second`` of overlapping boxes of one class where
    ``first[i] < second[j]``; the IoU is computed operation by operation as torchvision's NMS."""
    candidates = classes[first][:, None] == classes[second]
    candidates &= first[:, None] < second
    i, j = candidates.nonzero(as_tuple=True)
    a, b = boxes[first[i]].unbind(dim=1), boxes[second[j]].unbind(dim=1)
    width = (torch.minimum(a[2], b[2]) - torch.maximum(a[0], b[0])).clamp(min=0)
    height = (torch.minimum(a[3], b[3]) - torch.maximum(a[1], b[1])).clamp(min=0)
    intersection = width * height
    area_a = (a[2] - a[0]) * (a[3] - a[1])
    area_b = (b[2] - b[0]) * (b[3] - b[1])
    overlap = intersection / (area_a + area_b - intersection) > largest_allowed  # 0 / 0: no
    return i[overlap], j[overlap]


def _greedy(count: int, early: Tensor, late: Tensor) -> Tensor:
    """(count,) bool: kept, where ``early`` (E,) suppresses ``late`` (E,) if it is kept itself.

    Repeats "kept unless a kept one suppresses it" for all at once: what is settled for the first n
    after n rounds stays, so it ends, and it can only end in the greedy result.
    """
    keep = torch.ones(count, dtype=torch.bool, device=early.device)
    while True:
        again = torch.ones_like(keep)
        again[late[keep[early]]] = False
        if torch.equal(again, keep):
            return keep
        keep = again


def _comparable(threshold: float, device: torch.device) -> float:
    """The float32 f such that, for a float32 IoU, IoU > f decides as torchvision's NMS does: it
    compares with the threshold in float64 on a CPU, in float32 on a GPU."""
    nearest = np.float32(threshold)
    if device.type == "cpu" and float(nearest) > threshold:
        nearest = np.nextafter(nearest, np.float32(-np.inf))
    return float(nearest)
