"""INPUT.RESIZE_CROP: a crop of a resized image that misses no box."""

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from ovd_d2.config import add_ovd_config
from ovd_d2.data.mappers.detection import OpenVocabDatasetMapper
from ovd_d2.data.mappers.resize_crop import RandomCropKeepingBoxes, resize_and_crop
from ovd_d2.engine.config_rules import check_values
from ovd_d2.errors import OVDError


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.INPUT.RESIZE_CROP.PROB = 1.0
    cfg.INPUT.RESIZE_CROP.SHORT_SIDES, cfg.INPUT.RESIZE_CROP.SIDES = [40, 60], [20, 50]
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (24,), "none"
    return cfg


def test_every_box_is_in_the_crop_at_least_in_part():
    image = np.zeros((80, 100, 3), dtype=np.uint8)
    boxes = np.array([[2.0, 30, 30, 50], [60, 20, 70, 70]])
    sizes = set()
    for _ in range(30):
        given = T.AugInput(image, boxes=boxes)
        RandomCropKeepingBoxes(30, 60)(given)
        height, width = given.image.shape[:2]
        assert 30 <= height <= 60 and 30 <= width <= 60
        clipped = given.boxes.clip(0, [width, height, width, height])
        assert (clipped[:, 2:] > clipped[:, :2]).all()
        sizes.add((height, width))
    assert len(sizes) > 10


def test_what_cannot_be_kept_and_where_there_is_nothing():
    image = np.zeros((100, 100, 3), dtype=np.uint8)
    corners = np.array([[0.0, 0, 2, 2], [98, 98, 100, 100]])
    for boxes in (corners, None, np.zeros((0, 4))):
        given = T.AugInput(image, boxes=boxes)
        RandomCropKeepingBoxes(30, 30)(given)
        assert given.image.shape[:2] == (30, 30)


def test_a_small_image_stays_whole():
    given = T.AugInput(np.zeros((20, 25, 3), dtype=np.uint8))
    RandomCropKeepingBoxes(30, 60)(given)
    assert given.image.shape[:2] == (20, 25)


def test_it_comes_as_often_as_it_should_and_before_the_last_size():
    augmentation, cropped = resize_and_crop(0.5, [40], (20, 30)), 0
    for _ in range(200):
        given = T.AugInput(np.zeros((80, 160, 3), dtype=np.uint8))
        augmentation(given)
        height, width = given.image.shape[:2]
        assert (height, width) == (80, 160) or (20 <= height <= 30 and 20 <= width <= 30)
        cropped += height != 80
    assert 70 < cropped < 130


def test_the_mapper_s_boxes_follow(cfg, tmp_path):
    """A red square on black: in whatever is left of it the box is where it is red."""
    pixels = np.zeros((60, 80, 3), dtype=np.uint8)
    pixels[20:50, 30:60] = [255, 0, 0]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    box = {"bbox": [30, 20, 30, 30], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    record = {"file_name": str(tmp_path / "a.png"), "image_id": 1, "height": 60, "width": 80,
              "annotations": [box]}  # fmt: skip
    cfg.INPUT.FORMAT, cfg.DATASETS.TRAIN = "RGB", ()
    mapper = OpenVocabDatasetMapper(cfg, True)
    shapes = set()
    for _ in range(8):
        sample = mapper(record)
        red = (sample["image"][0] > 128).nonzero()
        (found,) = sample["instances"].gt_boxes.tensor.tolist()
        (top, left), (bottom, right) = red.min(0).values.tolist(), red.max(0).values.tolist()
        assert found == pytest.approx([left, top, right + 1, bottom + 1], abs=2.5)  # bilinear
        assert min(sample["image"].shape[1:]) == 24
        shapes.add(tuple(sample["image"].shape))
    assert len(shapes) > 2
    assert mapper({**record, "annotations": []})["image"].shape[0] == 3
    cfg.INPUT.RESIZE_CROP.PROB = 0.0
    assert OpenVocabDatasetMapper(cfg, True)(record)["image"].shape == (3, 24, 32)


def test_rules(cfg):
    cfg.INPUT.RESIZE_CROP.SIDES = [384]
    with pytest.raises(OVDError, match="INPUT.RESIZE_CROP.SIDES is .* a list of 2"):
        check_values(cfg)
