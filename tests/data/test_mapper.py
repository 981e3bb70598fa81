"""The mapper: Detectron2's results on good images, a named refusal of bad ones."""

import importlib.util
import logging

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.structures import BoxMode
from PIL import Image

from ovd_d2.config import add_ovd_config
from ovd_d2.data.mappers.detection import (
    OpenVocabDatasetMapper,
    build_mapper,
    read_image,
)
from ovd_d2.errors import OVDError
from ovd_d2.files.images import UnreadableImageError

# ruff: noqa: NPY002 (Detectron2's augmentations draw from the global generator)


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.INPUT.MIN_SIZE_TRAIN = (40, 60)
    cfg.INPUT.MIN_SIZE_TEST = 40
    return cfg


def pixels(height=48, width=64):
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def record(path, **changes):
    box = {"bbox": [4, 6, 20, 30], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1,
           "segmentation": [[4, 6, 24, 6, 24, 36, 4, 36]]}  # fmt: skip
    return {"file_name": str(path), "image_id": 1, "width": 64, "height": 48,
            "annotations": [box], **changes}  # fmt: skip


@pytest.fixture
def good(tmp_path):
    Image.fromarray(pixels()).save(tmp_path / "good.png")
    return record(tmp_path / "good.png")


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("crop", [False, True])
def test_same_as_detectron2(cfg, good, is_train, masks, crop):
    cfg.MODEL.MASK_ON = masks
    cfg.INPUT.CROP.ENABLED = crop
    if masks and crop:
        pytest.importorskip("shapely")
    outputs = []
    for kind in (DatasetMapper, OpenVocabDatasetMapper):
        np.random.seed(3)
        outputs.append(kind(cfg, is_train)(good))
    stock, ours = outputs
    assert stock.keys() == ours.keys()
    assert torch.equal(stock["image"], ours["image"])
    assert ("instances" in ours) == is_train
    if is_train:
        assert torch.equal(stock["instances"].gt_boxes.tensor, ours["instances"].gt_boxes.tensor)
        assert torch.equal(stock["instances"].gt_classes, ours["instances"].gt_classes)
        assert stock["instances"].has("gt_masks") == ours["instances"].has("gt_masks") == masks
    assert "annotations" in good  # the record is not touched


def test_semantic_segmentation_like_detectron2(cfg, good, tmp_path):
    Image.fromarray(pixels()[..., 0]).save(tmp_path / "seg.png")
    good["sem_seg_file_name"] = str(tmp_path / "seg.png")
    outputs = []
    for kind in (DatasetMapper, OpenVocabDatasetMapper):
        np.random.seed(3)
        outputs.append(kind(cfg, True)(good)["sem_seg"])
    assert torch.equal(*outputs)


@pytest.mark.parametrize("masks", [False, True])
def test_scale_jitter_fills_a_square(cfg, good, masks):
    if masks:
        pytest.importorskip("shapely")
    cfg.INPUT.SCALE_JITTER.ENABLED = True
    cfg.INPUT.SCALE_JITTER.SIZE = 80
    cfg.MODEL.MASK_ON = masks
    mapper = build_mapper(cfg, is_train=True)
    sizes = set()
    for seed in range(8):
        np.random.seed(seed)
        sample = mapper(good)
        assert sample["image"].shape == (3, 80, 80)
        boxes = sample["instances"].gt_boxes.tensor
        assert (boxes >= 0).all()
        assert (boxes <= 80).all()
        sizes.add(tuple((boxes[:, 2:] - boxes[:, :2]).flatten().round().tolist()))
    assert len(sizes) > 3
    assert build_mapper(cfg, is_train=False)(good)["image"].shape == (3, 40, 53)


def test_cutting_masks_without_shapely_is_refused(cfg, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "shapely" else find_spec(name)
    )
    cfg.MODEL.MASK_ON = True
    build_mapper(cfg, is_train=True)
    cfg.INPUT.CROP.ENABLED = True
    build_mapper(cfg, is_train=False)
    with pytest.raises(OVDError, match="pip install shapely"):
        build_mapper(cfg, is_train=True)


def test_empty_annotations(cfg, good):
    good["annotations"] = []
    instances = build_mapper(cfg, is_train=True)(good)["instances"]
    assert len(instances) == 0
    assert instances.gt_boxes.tensor.shape == (0, 4)


def test_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    Image.fromarray(pixels()).save(tmp_path / "turned.png", exif=exif)
    assert read_image(str(tmp_path / "turned.png"), "RGB").shape == (64, 48, 3)
    np.testing.assert_array_equal(
        read_image(str(tmp_path / "turned.png"), "BGR")[..., ::-1], np.rot90(pixels(), -1)
    )


def missing(path):
    pass


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("no image")


def truncated(path):
    Image.fromarray(pixels(480, 640)).save(path)
    path.write_bytes(path.read_bytes()[:20000])


def other_size(path):
    Image.fromarray(pixels(30, 30)).save(path)


def folder(path):
    path.mkdir()


def too_large(path):
    Image.fromarray(pixels(480, 640)).save(path)


@pytest.mark.parametrize("ending", ["png", "jpg"])
@pytest.mark.parametrize(
    "spoil, reason",
    [
        (missing, "there is no such file"),
        (empty, "UnidentifiedImageError"),
        (text, "UnidentifiedImageError"),
        (truncated, "truncated"),
        (other_size, "30 x 30 pixels, annotated as 64 x 48"),
        (folder, "IsADirectoryError"),
        (too_large, "640 x 480 pixels are more than INPUT.MAX_PIXELS = 300000"),
    ],
)
def test_bad_images_are_named(cfg, tmp_path, spoil, reason, ending):
    path = tmp_path / f"bad.{ending}"
    spoil(path)
    cfg.INPUT.MAX_PIXELS = 300_000 if spoil is too_large else 50_000_000
    for is_train in (True, False):
        with pytest.raises(UnreadableImageError) as caught:
            build_mapper(cfg, is_train)(record(path))
        assert caught.value.file_name == str(path)
        assert reason in caught.value.reason
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_pixel_cap_comes_before_decoding(tmp_path, monkeypatch):
    """The file is a header without pixels: decoding it could only fail in another way."""
    too_large(tmp_path / "bomb.png")
    (tmp_path / "bomb.png").write_bytes((tmp_path / "bomb.png").read_bytes()[:60])
    with pytest.raises(UnreadableImageError, match="640 x 480 pixels are more than"):
        read_image(str(tmp_path / "bomb.png"), "RGB", max_pixels=1000)


def test_the_error_survives_a_worker_process(cfg, tmp_path):
    from detectron2.data import build_detection_test_loader

    from ovd_d2.engine import error_sentence

    logging.getLogger("detectron2").setLevel(logging.ERROR)
    loader = build_detection_test_loader(
        [record(tmp_path / "gone.png")], mapper=build_mapper(cfg, False), num_workers=1
    )
    with pytest.raises(UnreadableImageError) as caught:
        next(iter(loader))
    assert error_sentence(caught.value) == (
        f"Cannot use the image {tmp_path / 'gone.png'}: there is no such file. Replace the file "
        "or its annotation."
    )
