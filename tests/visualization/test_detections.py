"""Pictures of detections: what is drawn where, at any size."""

import itertools

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image, ImageDraw

from ovd_d2.errors import OVDError
from ovd_d2.visualization import detections as draw
from ovd_d2.visualization.detections import class_colour, draw_detections

NAMES = ["cat", "red_mug", "a name that is very much longer than the picture is wide " * 9]


def detections(size, boxes, classes, scores=None, masks=None):
    found = Instances(size)
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.pred_classes = torch.tensor(classes, dtype=torch.int64)
    found.scores = torch.tensor(scores or [0.9] * len(classes))
    if masks is not None:
        found.pred_masks = masks
    return found


@pytest.fixture
def texts(monkeypatch):
    """(x, y, text, width, height) of everything that is written, in order."""
    written = []
    original = ImageDraw.ImageDraw.text

    def text(self, xy, text, font=None, **kwargs):
        box = font.getbbox(text)
        written.append((*xy, text, box[2], box[3]))
        original(self, xy, text, font=font, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return written


def test_box_name_and_score_at_full_size(texts):
    image = np.zeros((900, 1000, 3), np.uint8)
    drawn = draw_detections(
        image, detections((900, 1000), [[100, 200, 400, 600]], [1], [0.876]), NAMES
    )
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    assert not image.any()  # a copy
    assert [text for _, _, text, _, _ in texts] == ["red mug 0.88"]
    for y, x in ((200, 250), (599, 250), (400, 100), (400, 399)):
        assert drawn[y, x].tolist() == list(class_colour(1)), (y, x)
    for y, x in ((400, 250), (620, 250), (400, 420)):
        assert not drawn[y, x].any()


def test_tracks_have_numbers_and_colours_of_their_own(texts):
    image = np.zeros((900, 1000, 3), np.uint8)
    boxes = [[100, 200, 300, 300], [400, 200, 600, 300], [700, 200, 900, 300]]
    masks = torch.zeros(3, 900, 1000, dtype=torch.bool)
    masks[0, 220:280, 120:280] = True
    found = detections((900, 1000), boxes, [1, 1, 0], [0.7, 0.8, 0.9], masks)
    found.track_ids = torch.tensor([3, 144 * 10**6 + 4, -1])
    drawn = draw_detections(image, found, NAMES)
    assert [text for _, _, text, _, _ in texts] == [
        "#3 red mug 0.70", "#144000004 red mug 0.80", "cat 0.90"
    ]  # fmt: skip
    colours = [drawn[250, x].tolist() for x in (100, 400, 700)]
    assert colours == [list(class_colour(3)), list(class_colour(4)), list(draw.GREY)]
    assert drawn[250, 120].tolist() == colours[0]  # the outline of its mask


def test_small_pictures_are_enlarged(texts):
    image = np.zeros((192, 96, 3), np.uint8)
    found = detections((192, 96), [[10, 20, 40, 60]], [0])
    assert draw_detections(image, found, NAMES).shape == (800, 400, 3)
    assert draw_detections(image, found, NAMES, min_side=0).shape == image.shape
    tiny = draw_detections(
        np.zeros((1, 1, 3), np.uint8), detections((1, 1), [[0, 0, 1, 1]], [0]), NAMES
    )
    assert tiny.shape == (8, 8, 3)
    heights = {round(height) for *_, height in texts[:1]}
    assert min(heights) >= 12  # pixels, of 800


def test_the_best_labels_do_not_cover_each_other(texts):
    rng = np.random.default_rng(0)
    corners = rng.random((30, 2)) * 600
    boxes = np.concatenate([corners, corners + 40 + rng.random((30, 2)) * 160], axis=1)
    scores = np.linspace(0.1, 0.9, 30).tolist()
    found = detections((900, 900), boxes.tolist(), [0] * 30, scores)
    draw_detections(np.zeros((900, 900, 3), np.uint8), found, NAMES)
    shown = [float(text.split()[-1]) for _, _, text, _, _ in texts]
    assert shown == sorted(shown)  # the best comes last and lies on top
    rectangles = [(x, y, x + w, y + h) for x, y, _, w, h in texts]
    assert min(min(r) for r in rectangles) >= 0 and max(max(r) for r in rectangles) <= 900
    covered = sum(draw._overlap(a, b) > 0 for a, b in itertools.combinations(rectangles, 2))
    assert covered == 0


def test_long_names_keep_their_score(texts):
    draw_detections(
        np.zeros((300, 300, 3), np.uint8), detections((300, 300), [[5, 5, 9, 9]], [2]), NAMES
    )
    ((x, _, text, width, _),) = texts
    assert text.endswith("… 0.90") and text.startswith("a name that")
    assert x >= 0 and x + width <= 800


def test_masks_are_tinted_inside_alone():
    image = np.full((1000, 1000, 3), 100, np.uint8)
    masks = torch.zeros(2, 1000, 1000, dtype=torch.bool)
    masks[0, 300:500, 300:500] = True  # the second is empty
    found = detections((1000, 1000), [[200, 200, 600, 600], [0, 700, 90, 800]], [0, 1], None, masks)
    drawn = draw_detections(image, found, NAMES).astype(int)
    tint = 100 + draw.MASK_OPACITY * (np.array(class_colour(0)) - 100)
    assert abs(drawn[400, 400] - tint).max() <= 1
    assert drawn[400, 300].tolist() == list(class_colour(0))  # its outline
    for y, x in ((400, 250), (250, 400), (510, 400), (750, 50)):
        assert drawn[y, x].tolist() == [100] * 3


def test_a_mask_of_the_whole_small_picture():
    image = np.full((30, 40, 3), 100, np.uint8)
    found = detections((30, 40), [[0, 0, 40, 30]], [0], None, torch.ones(1, 30, 40).bool())
    drawn = draw_detections(image, found, NAMES)
    assert drawn.shape == (240, 320, 3)
    assert (drawn[120, 160] != 100).any()


def test_nothing_found_and_degenerate_boxes():
    image = np.full((900, 900, 3), 7, np.uint8)
    assert np.array_equal(draw_detections(image, detections((900, 900), [], []), NAMES), image)
    flat = detections(
        (900, 900), [[50, 50, 50, 50], [899, 899, 900, 900], [0, 0, 900, 900]], [0] * 3
    )
    assert draw_detections(image, flat, NAMES).shape == image.shape


def test_detections_of_another_image_are_refused():
    with pytest.raises(OVDError, match=r"\(10, 20\)"):
        draw_detections(np.zeros((20, 10, 3), np.uint8), detections((10, 20), [], []), NAMES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ["cat"]}, "names has 1 entries, but a detection is of class 2"),
        ({"names": "cat, dog, cow"}, "names is 'cat, dog, cow'"),
        ({"names": None}, "names is None"),
        ({"image": None}, "image is .*NoneType"),
        ({"image": np.zeros((20, 10), np.uint8)}, r"image is uint8 \(20, 10\)"),
        ({"image": np.zeros((20, 10, 3))}, "image is float64"),
        ({"instances": None}, "instances is a NoneType"),
        ({"instances": Instances((20, 10))}, "instances lacks pred_boxes, scores, pred_classes"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    right = {
        "image": np.zeros((20, 10, 3), np.uint8),
        "instances": detections((20, 10), [[1, 1, 5, 5]], [2]),
        "names": ["cat", "dog", "cow"],
    }
    draw_detections(**right)
    with pytest.raises(OVDError, match=message):
        draw_detections(**{**right, **changes})


def test_neighbouring_classes_have_distant_colours():
    colours = np.array([class_colour(k) for k in range(160)], dtype=int)
    assert abs(np.diff(colours, axis=0)).sum(axis=1).min() > 60
    assert len({tuple(c) for c in colours[:36].tolist()}) == 36
    assert Image.new("RGB", (1, 1), class_colour(10_000)).getpixel((0, 0)) == class_colour(10_000)
