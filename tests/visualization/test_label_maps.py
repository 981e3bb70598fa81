"""Label maps in colour: where, which, and what the legend says."""

import numpy as np
import pytest

from ovd_d2.errors import OVDError
from ovd_d2.visualization.detections import class_colour
from ovd_d2.visualization.label_maps import (
    OPACITY,
    _broadest,
    class_shares,
    draw_label_map,
    map_colour,
)
from ovd_d2.visualization.side_by_side import side_by_side

NAMES = ["background", "red_mug", "sea"]


def test_classes_are_coloured_and_background_is_not():
    image = np.full((40, 60, 3), 100, np.uint8)
    labels = np.zeros((40, 60), int)
    labels[:, 30:] = 2
    drawn = draw_label_map(image, labels, NAMES, min_side=0)
    assert drawn.shape[1] == 60 and drawn.shape[0] > 40  # a legend below
    assert (drawn[:40, 5] == 100).all()
    expected = 100 * (1 - OPACITY) + np.array(class_colour(2)) * OPACITY
    np.testing.assert_allclose(drawn[2, 55], expected, atol=1)
    assert (drawn[:40, 30] < 60).all()  # the outline
    assert (image == 100).all()


def test_small_pictures_are_enlarged_and_many_classes_fit():
    labels = np.arange(64).reshape(8, 8)
    drawn = draw_label_map(
        np.zeros((8, 8, 3), np.uint8), labels, [f"class {i}" for i in labels.flat]
    )
    assert drawn.shape[1] == 64  # eight times
    assert drawn.shape[0] > 64


def test_the_legend_names_what_is_there():
    image = np.zeros((200, 300, 3), np.uint8)
    labels = np.ones((200, 300), int)
    one = draw_label_map(image, labels, NAMES, min_side=0)[200:]
    swatch = np.array(map_colour(1, NAMES))
    assert (one == swatch).all(axis=2).sum() > 50
    assert not (one == np.array(map_colour(2, NAMES))).all(axis=2).any()


def test_shares_are_in_order():
    assert class_shares(np.array([[2, 2, 0, 7], [2, 2, 2, 0]])) == {2: 5 / 8, 0: 2 / 8, 7: 1 / 8}
    assert list(class_shares(np.array([[2, 2, 0, 7], [2, 2, 2, 0]]))) == [2, 0, 7]


def test_the_broadest_place_of_a_mask():
    mask = np.zeros((30, 40), bool)
    mask[3, :] = True
    mask[10:21, 20:31] = True
    assert _broadest(mask) == (25, 15)


def test_what_is_refused():
    image = np.zeros((4, 5, 3), np.uint8)
    with pytest.raises(OVDError, match=r"shape \(5, 4\), its picture \(4, 5\)"):
        draw_label_map(image, np.zeros((5, 4), int), NAMES)
    with pytest.raises(OVDError, match="classes from 0 to 3, but there are 3 names"):
        draw_label_map(image, np.array([[0, 3, 0, 0, 0]] * 4), NAMES)
    with pytest.raises(OVDError, match="nothing to show"):
        side_by_side({})


def test_panels_stand_beside_each_other():
    red, blue = np.zeros((2, 30, 40, 3), np.uint8)
    red[..., 0], blue[..., 2] = 250, 250
    sheet = side_by_side({"a": red, "a name far too long for one panel" * 9: blue}, width=200)
    is_red = (sheet == [250, 0, 0]).all(axis=2)
    is_blue = (sheet == [0, 0, 250]).all(axis=2)
    assert is_red.sum() == is_blue.sum() == 200 * 150
    assert is_red.any(axis=0).nonzero()[0].max() < is_blue.any(axis=0).nonzero()[0].min()
    assert side_by_side({str(i): red for i in range(6)}, width=200).shape[1] == 3 * 212 + 12
