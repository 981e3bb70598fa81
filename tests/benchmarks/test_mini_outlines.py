"""Masks of the mini benchmark become polygons that rasterise to the same pixels."""

import numpy as np
import pycocotools.mask as mask_utils
from hypothesis import given, settings
from hypothesis import strategies as st

from ovd_d2.benchmarks.mini.annotations import box_of_mask
from ovd_d2.benchmarks.mini.outlines import mask_to_polygons


def rasterised(polygons, height, width):
    merged = mask_utils.merge(mask_utils.frPyObjects(polygons, height, width))
    return mask_utils.decode(merged).astype(bool)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 2**32 - 1), st.floats(0.05, 1))
def test_any_mask_survives_exactly(height, width, seed, density):
    mask = np.random.default_rng(seed).random((height, width)) < density
    polygons = mask_to_polygons(mask)
    if not mask.any():
        assert polygons == []
        return
    assert all(len(polygon) >= 8 and len(polygon) % 2 == 0 for polygon in polygons)
    assert np.array_equal(rasterised(polygons, height, width), mask)
    x, y, w, h = box_of_mask(mask)
    inside = np.zeros_like(mask)
    inside[y : y + h, x : x + w] = True
    assert not (mask & ~inside).any()
    assert mask[:, x].any() and mask[:, x + w - 1].any()
    assert mask[y].any() and mask[y + h - 1].any()


def test_a_ring_with_an_island_is_two_polygons():
    mask = np.zeros((12, 12), bool)
    mask[1:11, 1:11] = True
    mask[3:9, 3:9] = False
    mask[5:7, 5:7] = True
    polygons = mask_to_polygons(mask)
    assert len(polygons) == 2
    assert polygons[1] == [5, 5, 7, 5, 7, 7, 5, 7]
    assert np.array_equal(rasterised(polygons, 12, 12), mask)


def test_a_filled_rectangle_is_its_four_corners():
    mask = np.zeros((6, 9), bool)
    mask[2:5, 3:8] = True
    assert mask_to_polygons(mask) == [[3, 2, 8, 2, 8, 5, 3, 5]]
