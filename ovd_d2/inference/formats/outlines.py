"""Masks as polygons.

Letters: H, W height and width of an image; P points of a polygon.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .detection_set import DetectedImage, DetectedObject


def outlines(image: DetectedImage, one: DetectedObject) -> list[np.ndarray]:
    """The outlines of an object's parts, the largest first; of one without a mask those of its box.

    Holes are filled. Polygons are taken as they are; those of run lengths go along the borders of
    the pixels and cut their corners.

    Returns:
        (P, 2) float64 each, x and y in pixels inside of the image, the last point not repeated.
    """
    size = (image.width, image.height)
    polygons = []
    if isinstance(one.mask, Mapping):
        polygons = _around_pixels(one.mask)
    elif one.mask:
        polygons = [np.array(p, float).reshape(-1, 2) for p in one.mask if len(p) % 2 == 0]
    polygons = [p.clip((0, 0), size) for p in polygons]
    polygons = [p for p in polygons if len(p) > 2 and _area(p) > 0]
    return sorted(polygons, key=_area, reverse=True) or [corners(one.box)]


def corners(box: tuple[float, float, float, float]) -> np.ndarray:
    """(4, 2) of a box, clockwise from the upper left."""
    x0, y0, x1, y1 = box
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)


def joined(polygons: list[np.ndarray]) -> np.ndarray:
    """One polygon of several: from the first to each of the others and back, on one line."""
    first, *others = polygons
    parts = [first]
    for other in others:
        parts += [first[:1], other, other[:1]]
    return np.concatenate([*parts, first[:1]]) if others else first


def _around_pixels(run_lengths: Mapping[str, Any]) -> list[np.ndarray]:
    from contourpy import FillType, contour_generator
    from pycocotools import mask as coco_mask

    rle = run_lengths
    if isinstance(rle["counts"], list):
        rle = coco_mask.frPyObjects(rle, *rle["size"])
    mask = np.pad(coco_mask.decode(rle), 1).astype(float)
    # Pixel (0, 0) of the mask is at (1, 1) of the padded one, and has its middle at 0.5.
    generator = contour_generator(z=mask, fill_type=FillType.OuterOffset)
    found = []
    for points, offsets in zip(*generator.filled(0.5, np.inf)):
        outer = points[: offsets[1] - 1]  # what comes after are holes
        steps = np.diff(outer, axis=0, prepend=outer[-1:])
        found.append(outer[(steps != np.roll(steps, -1, axis=0)).any(axis=1)] - 0.5)
    return found


def _area(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2
