"""Masks as polygons: rasterised again they are the masks."""

from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from tricky_detections import ring_and_dot, run_lengths

from ovd_d2.inference.formats import DetectedImage, DetectedObject
from ovd_d2.inference.formats.outlines import joined, outlines


def of(mask, box=(0, 0, 1, 1), size=(160, 120)):
    image = DetectedImage(1, "a.png", Path("a.png"), *size)
    return outlines(image, DetectedObject(0, box, None, mask))


def area(polygon):
    x, y = np.asarray(polygon).T
    return abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2


def test_parts_largest_first_without_their_holes():
    ring, dot = of(run_lengths(ring_and_dot()))
    assert area(dot) == pytest.approx(30 * 30 - 4 / 8)  # the four corners are cut
    y, x = np.mgrid[:120, :160]
    disc = np.hypot(y - 60, x - 60) < 40
    assert area(ring) == pytest.approx(disc.sum(), rel=0.01)
    drawn = coco_mask.decode(coco_mask.frPyObjects([ring.flatten().tolist()], 120, 160))[..., 0]
    assert (drawn != disc).mean() < 0.005
    assert len(dot) == 8 and len(ring) < 260  # straight lines have two points


@pytest.mark.parametrize("shape", ["dot", "line", "whole", "diagonal", "uncompressed"])
def test_thin_and_full_masks(shape):
    mask = np.zeros((120, 160), np.uint8)
    if shape == "dot":
        mask[7, 9] = 1
    elif shape == "line":
        mask[7, 9:90] = 1
    elif shape == "diagonal":
        mask[range(50), range(50)] = 1
    else:
        mask[:] = 1
    rle = run_lengths(mask)
    if shape == "uncompressed":
        rle = {"size": [120, 160], "counts": [0, 120 * 160]}
    found = of(rle)
    rows, columns = np.nonzero(mask)
    points = np.concatenate(found)
    np.testing.assert_allclose(points.min(0), (columns.min(), rows.min()))
    np.testing.assert_allclose(points.max(0), (columns.max() + 1, rows.max() + 1))
    assert sum(map(area, found)) == pytest.approx(mask.sum(), rel=0.5)


def test_polygons_are_taken_inside_of_the_image_and_boxes_where_there_are_none():
    (found,) = of([[-5, -5, 170, 10, 20, 90], [1, 1, 2, 2], [3, 3, 4, 4, 5]])
    np.testing.assert_allclose(found, [(0, 0), (160, 10), (20, 90)])
    for nothing in (None, [], [[1, 1, 2, 2]], run_lengths(np.zeros((120, 160), np.uint8))):
        (found,) = of(nothing, box=(1, 2, 30, 40))
        np.testing.assert_allclose(found, [(1, 2), (30, 2), (30, 40), (1, 40)])


def test_joined_parts_have_their_area_and_no_other():
    squares = [np.array([(x, 0), (x + 10, 0), (x + 10, 10), (x, 10)], float) for x in (0, 20, 60)]
    one = joined(squares)
    assert area(one) == pytest.approx(300)
    drawn = coco_mask.decode(coco_mask.frPyObjects([one.flatten().tolist()], 20, 80))[..., 0]
    assert 300 <= drawn.sum() <= 300 + 2 * 40  # lines to the others may be drawn
    assert joined(squares[:1]) is squares[0]
