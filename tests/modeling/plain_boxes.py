"""ATSS's assignment, GIoU, centerness and the code of box deltas, box by box, for parity."""

import math
import statistics

import torch
from detectron2.structures import Boxes, pairwise_iou


def plain_assign(levels, boxes, usable=None, per_level=9):
    """(A,) object of every anchor or -1; box by box, candidate by candidate."""
    every = torch.cat(levels).tolist()
    best = {}
    for number, box in enumerate(boxes.tolist()):
        middle = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]
        candidates, start = [], 0
        for level in levels:
            places = range(start, start + len(level))
            places = [p for p in places if usable is None or usable[p]]
            places.sort(
                key=lambda p: sum(
                    ((every[p][axis] + every[p][axis + 2]) / 2 - middle[axis]) ** 2
                    for axis in (0, 1)
                )
            )
            candidates += places[:per_level]
            start += len(level)
        iou = pairwise_iou(Boxes(torch.tensor([box])), Boxes(torch.tensor(every)))[0].tolist()
        values = [iou[p] for p in candidates]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        threshold = statistics.mean(values) + spread
        for p in candidates:
            x, y = ((every[p][axis] + every[p][axis + 2]) / 2 for axis in (0, 1))
            sides = (x - box[0], y - box[1], box[2] - x, box[3] - y)
            inside = min(sides) > 0.51  # the border pixels' centres and a bit
            if iou[p] >= threshold - 1e-6 and inside and iou[p] > best.get(p, (0, 0))[0]:
                best[p] = (iou[p], number)
    return torch.tensor([best[p][1] if p in best else -1 for p in range(len(every))])


def plain_giou(one, other):
    """Of two boxes, between the centres of their border pixels."""
    one = [one[0] + 0.5, one[1] + 0.5, one[2] - 0.5, one[3] - 0.5]
    other = [other[0] + 0.5, other[1] + 0.5, other[2] - 0.5, other[3] - 0.5]
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = width * height if width > 0 and height > 0 else 0.0
    union = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)) - shared
    hull = (max(one[2], other[2]) - min(one[0], other[0])) * (
        max(one[3], other[3]) - min(one[1], other[1])
    )
    return shared / union - (hull - union) / hull


def plain_centerness(anchor, box):
    """FCOS's equation 3 at the anchor's centre, between the centres of the border pixels."""
    x, y = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2
    left, top, right, bottom = x - box[0], y - box[1], box[2] - x, box[3] - y
    across = (min(left, right) - 0.5) / (max(left, right) - 0.5)
    along = (min(top, bottom) - 0.5) / (max(top, bottom) - 0.5)
    return math.sqrt(across * along)


def plain_decode(deltas, anchor):
    """The box that four deltas make of an anchor; weights (10, 10, 5, 5), growth up to 1000 / 16.

    Args:
        deltas: four numbers or scalars.
        anchor: x1 y1 x2 y2, numbers.
    """
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x = (anchor[0] + anchor[2]) / 2 + deltas[0] / 10 * width
    y = (anchor[1] + anchor[3]) / 2 + deltas[1] / 10 * height
    most = math.log(1000 / 16)
    width = width * (deltas[2] / 5).clamp(max=most).exp()
    height = height * (deltas[3] / 5).clamp(max=most).exp()
    return torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
