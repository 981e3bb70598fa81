"""The mapper of grounded captions: boxes of phrases, mirrored captions, refusals."""

import pickle

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from ovd_d2.config import add_ovd_config
from ovd_d2.data.build import build_train_loader
from ovd_d2.data.mappers.detection import OpenVocabDatasetMapper, build_mapper
from ovd_d2.data.mappers.grounding import GroundingMapper
from ovd_d2.errors import OVDError
from ovd_d2.structures import TokenSpans

# ruff: noqa: NPY002 (Detectron2's augmentations draw from the global generator)

CAPTION = TokenSpans("the left dog, a cat", [[(4, 12)], [(16, 19)]])
MIRRORED = TokenSpans("the right dog, a cat", [[(4, 13)], [(17, 20)]])


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "GLIP"
    cfg.INPUT.MAPPER = "GroundingMapper"
    cfg.INPUT.MIN_SIZE_TRAIN = (48,)
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SEED = 3
    return cfg


@pytest.fixture
def record(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    boxes = [([4, 6, 20, 30], 1), ([30, 8, 10, 10], 0), ([50, 8, 10, 10], 1)]
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": phrase} for box, phrase in boxes
    ]
    return {"file_name": str(tmp_path / "image.png"), "image_id": 1, "width": 64, "height": 48,
            "caption": CAPTION, "annotations": annotations}  # fmt: skip


def mapper(augmentations=(), is_train=True, **options):
    return GroundingMapper(
        is_train, augmentations=list(augmentations), image_format="RGB", **options
    )


def test_boxes_have_phrases(cfg, record):
    sample = build_mapper(cfg, True)(record)
    assert isinstance(build_mapper(cfg, True), GroundingMapper)
    rows = sample["instances"]
    assert set(rows.get_fields()) == {"gt_boxes", "gt_phrases"}
    assert rows.gt_phrases.tolist() == [1, 0, 1] and rows.gt_phrases.dtype == torch.int64
    assert rows.gt_boxes.tensor.tolist()[1] == [30, 8, 40, 18]
    assert sample["caption"] == CAPTION
    assert "annotations" in record and "annotations" not in sample
    assert pickle.loads(pickle.dumps(sample))["caption"] == CAPTION


def test_images_and_boxes_are_those_of_the_mapper_of_boxes(cfg, record):
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    cfg.INPUT.CROP.ENABLED = True
    for seed in range(5):
        samples = []
        of_classes = {key: value for key, value in record.items() if key != "caption"}
        for kind, one in ((OpenVocabDatasetMapper, of_classes), (GroundingMapper, record)):
            np.random.seed(seed)
            samples.append(kind(cfg, True)(one))
        boxes, grounded = samples
        assert torch.equal(boxes["image"], grounded["image"])
        rows, phrases = boxes["instances"], grounded["instances"]
        assert torch.equal(rows.gt_boxes.tensor, phrases.gt_boxes.tensor)
        assert torch.equal(rows.gt_classes, phrases.gt_phrases)


def test_captions_of_mirrored_images_change_sides(cfg, record):
    flip = T.RandomFlip(prob=1.0)
    sample = mapper([flip])(record)
    assert sample["caption"] == MIRRORED
    assert sample["instances"].gt_boxes.tensor.tolist()[1] == [24, 8, 34, 18]
    assert mapper([flip, T.Resize((20, 30)), flip])(record)["caption"] == CAPTION
    assert (
        mapper([T.RandomFlip(prob=1.0, horizontal=False, vertical=True)])(record)["caption"]
        == CAPTION
    )
    assert mapper([flip], swaps_left_right=False)(record)["caption"] == CAPTION
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    seen = set()
    for seed in range(8):
        np.random.seed(seed)
        sample = build_mapper(cfg, True)(record)
        left = float(sample["instances"].gt_boxes.tensor[1, 0]) == 24
        assert sample["caption"] == (MIRRORED if left else CAPTION)
        seen.add(left)
    assert seen == {True, False}
    cfg.INPUT.SWAP_LEFT_RIGHT = False
    np.random.seed(0)
    assert build_mapper(cfg, True)(record)["caption"] == CAPTION


def test_images_without_boxes_keep_their_captions(record):
    crop = T.CropTransform(0, 40, 64, 8)  # below all boxes but the first
    for annotations in ([], record["annotations"][1:], None):
        given = {**record, "annotations": annotations}
        if annotations is None:
            del given["annotations"]
        sample = mapper([T.RandomFlip(prob=1.0), crop])(given)
        assert sample["caption"] == MIRRORED
        assert len(sample["instances"]) == 0
        assert sample["instances"].gt_phrases.shape == (0,)
        assert sample["instances"].gt_boxes.tensor.shape == (0, 4)
        assert set(sample["instances"].get_fields()) == {"gt_boxes", "gt_phrases"}


def test_in_testing_the_caption_stays_and_boxes_go(cfg, record):
    sample = build_mapper(cfg, False)(record)
    assert sample["caption"] == CAPTION
    assert "instances" not in sample and "annotations" not in sample


def test_plain_captions_have_no_phrases(record):
    sample = mapper()({**record, "caption": "a cat", "annotations": []})
    assert sample["caption"] == TokenSpans("a cat")


def test_wrong_records_and_configs_are_refused(cfg, record):
    with pytest.raises(OVDError, match=r"image\.png belongs to phrase 1, .* has 1 phrases"):
        mapper()({**record, "caption": TokenSpans("a cat", [[(2, 5)]])})
    del record["caption"]
    with pytest.raises(OVDError, match=r"record of .*image\.png has no caption"):
        mapper()(record)
    asked = mapper(is_train=False)(record)  # by a data set of classes
    assert "caption" not in asked and "instances" not in asked
    cfg.DATASETS.REGION_STORE = "somewhere"
    with pytest.raises(OVDError, match="makes no use of DATASETS.REGION_STORE"):
        build_mapper(cfg, True)


def test_mini_is_loaded_in_batches(cfg, mini_root):
    cfg.DATASETS.TRAIN = ("mini_v1_grounding_train",)
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    records = {r["image_id"]: r for r in DatasetCatalog.get("mini_v1_grounding_train")}
    loader = iter(build_train_loader(cfg))
    for _ in range(3):
        batch = next(loader)
        assert len(batch) == 2
        for sample in batch:
            record = records[sample["image_id"]]
            assert sample["caption"].phrases() == record["caption"].phrases()
            phrases = [a["category_id"] for a in record["annotations"]]
            assert sample["instances"].gt_phrases.tolist() == phrases


@pytest.mark.parametrize("mixing", ["alternate", "together"])
def test_captions_and_boxes_of_classes_can_be_mixed(cfg, mini_root, mixing):
    cfg.INPUT.MAPPER = "OpenVocabDatasetMapper"
    cfg.DATASETS.TRAIN = ("mini_v1_train_base",)
    captions = ["DATASETS.TRAIN", ("mini_v1_grounding_train",), "INPUT.MAPPER", "GroundingMapper"]
    cfg.DATASETS.SOURCES = [{"NAME": "boxes"}, {"NAME": "captions", "OPTS": captions}]
    cfg.DATASETS.MIXING = mixing
    loader = iter(build_train_loader(cfg))
    batches = [next(loader) for _ in range(2)]
    kinds = [["caption" in sample for sample in batch] for batch in batches]
    if mixing == "together":
        assert kinds == [[False, False, True, True]] * 2
    else:
        assert sorted(kinds) == [[False, False], [True, True]]
    for sample in sum(batches, []):
        assert sample["instances"].has("gt_phrases") == ("caption" in sample)
        assert sample["instances"].has("gt_classes") == ("caption" not in sample)


def test_phrases_are_not_taken_for_classes(cfg, record):
    with pytest.raises(OVDError, match=r"image\.png are of phrases of a caption.*GroundingMapper"):
        OpenVocabDatasetMapper(cfg, True)(record)
    assert "image" in OpenVocabDatasetMapper(cfg, False)(record)
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    with pytest.raises(OVDError, match="GeneralizedRCNN does not read"):
        build_mapper(cfg, True)
