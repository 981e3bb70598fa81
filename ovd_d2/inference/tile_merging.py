"""What several overlapping tiles of a picture say, made one.

Two boxes of one class, of tiles S and T, are of the same object if what of them lies in both tiles,
S n T, is the same: IoU of at least 0.5. So a box that ends at the edge of S is part of the larger
one that T sees, however small that part is, while a small object in front of a large one of its
class is not (intersection over the smaller area would call it a part). Then

1. of boxes that are whole the best-scored stays (class-wise NMS), and parts of them go, whatever
   they score;
2. parts that no tile and not the whole picture has seen whole become one: their hull, with the best
   of their scores.

Boxes of one tile are not compared: what the model says of a picture stands.

Letters: R detections of all tiles, T tiles, E pairs of equal detections.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

MIN_IOU = 0.5  # in the part of the picture that both tiles show
AT_EDGE = 0.01  # of a tile's side: so close to its edge a box may go on beyond


@dataclass(frozen=True)
class Merged:
    """Detections of the whole picture.

    Attributes:
        boxes: (R', 4) float, x0 y0 x1 y1 in the frame of the picture.
        scores: (R',) float, best first.
        rows: (R',) int64, which of the R each one is; of a hull, the best of its parts.
        parts: row -> all rows that were made one with it, of hulls alone.
    """

    boxes: Tensor
    scores: Tensor
    rows: Tensor
    parts: dict[int, list[int]]


def merge_tiles(
    boxes: Tensor, scores: Tensor, classes: Tensor, tiles: Tensor, tile_of: Tensor
) -> Merged:
    """One set of detections of those of ``tiles``.

    Args:
        boxes: (R, 4) float, in the frame of the picture.
        scores: (R,) float.
        classes: (R,) int64.
        tiles: (T, 4) float, x0 y0 x1 y1 of the tiles; their hull is the picture.
        tile_of: (R,) int64 in [0, T).
    """
    first, second = _equal_pairs(boxes, classes, tiles, tile_of)
    is_part = _at_inner_edge(boxes, tiles[tile_of], tiles)
    order = torch.argsort(scores, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    rank = rank + is_part * len(rank)  # whole ones before parts
    alive = _suppress(rank, ~is_part, first, second)
    whole = alive & ~is_part
    # What is left of the parts: connected ones are one object.
    left = alive & is_part
    linked = left[first] & left[second]
    leader = _leaders(rank, first[linked], second[linked])
    hull = _hulls(boxes, leader, left)
    keep = whole | (left & (leader == torch.arange(len(leader))))
    rows = order[keep[order]]
    members: dict[int, list[int]] = {}
    grouped = torch.bincount(leader[left], minlength=len(leader))
    for row, owner in zip(*(x[left & (grouped[leader] > 1)].tolist() for x in _numbered(leader))):
        members.setdefault(owner, []).append(row)
    return Merged(hull[rows], scores[rows], rows, members)


def _numbered(values: Tensor) -> tuple[Tensor, Tensor]:
    return torch.arange(len(values)), values


def _equal_pairs(
    boxes: Tensor, classes: Tensor, tiles: Tensor, tile_of: Tensor
) -> tuple[Tensor, Tensor]:
    """(2 E,) int64 each: both directions of all pairs of one object. Only tiles that share pixels
    are compared, one against its neighbours at a time: what is held grows with R and not R * R."""
    by_tile = torch.argsort(tile_of, stable=True)
    counts = torch.bincount(tile_of, minlength=len(tiles))
    rows_of = by_tile.split(counts.tolist())
    pairs = [torch.empty(0, 2, dtype=torch.long)]
    for t in counts.nonzero().flatten().tolist():
        shared = _clipped(tiles[t + 1 :], tiles[t])
        neighbours = (_area(shared) > 0).nonzero().flatten()
        if not len(neighbours):
            continue
        mine = rows_of[t]
        theirs = torch.cat([rows_of[u] for u in (neighbours + t + 1).tolist()])
        both = shared[tile_of[theirs] - t - 1]  # what is seen of each in both tiles
        a = _clipped(boxes[mine, None], both[None])
        b = _clipped(boxes[theirs], both)[None]
        inside = _area(_clipped(a, b))
        union = _area(a) + _area(b) - inside
        same = (inside >= MIN_IOU * union) & (inside > 0)
        same &= classes[mine, None] == classes[None, theirs]
        i, j = same.nonzero(as_tuple=True)
        pairs.append(torch.stack([mine[i], theirs[j]], dim=1))
    first, second = torch.cat(pairs).unbind(dim=1)
    return torch.cat([first, second]), torch.cat([second, first])


def _clipped(boxes: Tensor, frame: Tensor) -> Tensor:
    """What of boxes (..., 4) lies in frames (..., 4); without area where nothing does."""
    low = torch.maximum(boxes[..., :2], frame[..., :2])
    return torch.cat([low, torch.minimum(boxes[..., 2:], frame[..., 2:]).maximum(low)], dim=-1)


def _area(boxes: Tensor) -> Tensor:
    sides = boxes[..., 2:] - boxes[..., :2]
    return sides[..., 0] * sides[..., 1]


def _at_inner_edge(boxes: Tensor, tile: Tensor, tiles: Tensor) -> Tensor:
    """(R,) bool: whether a box reaches an edge of its tile that is none of the picture."""
    picture = torch.cat([tiles[:, :2].amin(dim=0), tiles[:, 2:].amax(dim=0)])
    close = AT_EDGE * (tile[:, 2:] - tile[:, :2]).repeat(1, 2)
    return (((boxes - tile).abs() <= close) & (tile != picture)).any(dim=1)


def _suppress(rank: Tensor, may_win: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """(R,) bool: what greedy suppression leaves: in the order of ``rank``, lowest first, each that
    is left and ``may_win`` takes its pairs away. All whose turn it is go at once."""
    alive, undecided = torch.ones_like(may_win), may_win.clone()
    while undecided.any():
        best = torch.full_like(rank, torch.iinfo(rank.dtype).max)
        active = undecided[second]
        best.scatter_reduce_(0, first[active], rank[second[active]], "amin")
        winners = undecided & (rank < best)
        beaten = second[winners[first]]
        alive[beaten] = False
        undecided &= ~winners
        undecided[beaten] = False
    return alive


def _leaders(rank: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """(R,) int64: the row of the lowest rank among those that pairs connect a row with."""
    lowest, before = rank.clone(), None
    while before is None or not torch.equal(lowest, before):
        before = lowest
        lowest = before.scatter_reduce(0, first, before[second], "amin")
    row_of = torch.empty(int(rank.max()) + 1 if len(rank) else 0, dtype=torch.long)
    row_of[rank] = torch.arange(len(rank))
    return row_of[lowest]


def _hulls(boxes: Tensor, leader: Tensor, parts: Tensor) -> Tensor:
    """(R, 4): the boxes, those of leaders around all of their ``parts``."""
    hull = boxes.clone()
    rows = leader[parts, None].expand(-1, 2)
    hull[:, :2] = hull[:, :2].scatter_reduce(0, rows, boxes[parts, :2], "amin")
    hull[:, 2:] = hull[:, 2:].scatter_reduce(0, rows, boxes[parts, 2:], "amax")
    return hull
