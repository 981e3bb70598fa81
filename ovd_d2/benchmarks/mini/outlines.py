"""Pixel masks as polygons that rasterise back to exactly the same pixels."""

from __future__ import annotations

import numpy as np

Ring = list[tuple[int, int]]
Edge = tuple[int, int, int]  # x, y of its first corner, and direction

# Directions right, down, left, up as steps between pixel corners.
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def mask_to_polygons(mask: np.ndarray) -> list[list[int]]:
    """Traces a mask along its pixel corners.

    Args:
        mask: (H, W) bool.

    Returns:
        one polygon [x0, y0, x1, y1, ...] per 4-connected component, integer corner coordinates;
        an empty list for an empty mask. A hole is joined to the outline by a bridge that is walked
        in both directions, so ``pycocotools`` rasterises the list to ``mask`` without a differing
        pixel, and drawing programs leave the hole open.
    """
    from scipy.ndimage import label

    if not mask.any():
        return []
    # Only the part within the tight box is traced.
    y0, x0 = int(mask.any(1).argmax()), int(mask.any(0).argmax())
    y1, x1 = (mask.shape[i] - int(mask.any(1 - i)[::-1].argmax()) for i in (0, 1))
    mask = mask[y0:y1, x0:x1]
    components, _ = label(mask)
    outlines: dict[int, Ring] = {}
    holes: list[tuple[int, Ring]] = []
    for component, ring in _rings(mask, components):
        if _signed_area(ring) > 0:
            outlines[component] = ring
        else:
            holes.append((component, ring))
    for component, ring in holes:
        outlines[component] = _bridge(outlines[component], ring)
    return [
        [coordinate for x, y in outlines[c] for coordinate in (x + x0, y + y0)]
        for c in sorted(outlines)
    ]


def _rings(mask: np.ndarray, components: np.ndarray) -> list[tuple[int, Ring]]:
    """Closed walks around all borders, the component on the right; corners only."""
    padded = np.pad(mask, 1)
    inner = padded[1:-1, 1:-1]
    neighbours = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])
    starts = ((0, 0), (1, 0), (1, 1), (0, 1))  # first corner of a pixel's top, right, bottom, left
    edges: dict[Edge, int] = {}  # border edge -> component
    for direction, (neighbour, (dx, dy)) in enumerate(zip(neighbours, starts, strict=True)):
        ys, xs = np.nonzero(inner & ~neighbour)
        owners = components[ys, xs].tolist()
        for x, y, owner in zip((xs + dx).tolist(), (ys + dy).tolist(), owners, strict=True):
            edges[x, y, direction] = owner
    rings = []
    unvisited = dict(edges)
    while unvisited:
        start, owner = next(iter(unvisited.items()))
        rings.append((owner, _walk(start, edges, unvisited)))
    return rings


def _walk(start: Edge, edges: dict[Edge, int], unvisited: dict[Edge, int]) -> Ring:
    """Follows the border from ``start`` until it closes; removes what it visits."""
    ring: Ring = []
    edge, previous = start, -1
    while True:
        del unvisited[edge]
        x, y, direction = edge
        if direction != previous:
            ring.append((x, y))
        previous = direction
        x, y = x + _STEPS[direction][0], y + _STEPS[direction][1]
        # Right turns first keep components that touch at a corner apart.
        edge = (x, y, (direction + 1) % 4)
        if edge not in edges:
            edge = (x, y, direction)
            if edge not in edges:
                edge = (x, y, (direction + 3) % 4)
        if edge == start:
            break
    if edge[2] == previous:  # the walk began in the middle of a straight line
        ring = ring[1:]
    return ring


def _signed_area(ring: Ring) -> float:
    """Positive for outlines (clockwise with y pointing down), negative for holes."""
    following = [*ring[1:], ring[0]]
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(ring, following, strict=True)) / 2


def _bridge(outline: Ring, hole: Ring) -> Ring:
    """Joins a hole to an outline at their nearest corners."""
    a, b = np.array(outline), np.array(hole)
    distance = np.abs(a[:, None] - b[None]).sum(-1)
    i, j = np.unravel_index(int(distance.argmin()), distance.shape)
    turned = [*hole[j:], *hole[:j], hole[j]]
    return [*outline[: i + 1], *turned, *outline[i:]]
