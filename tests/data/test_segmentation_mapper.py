"""Maps go with their images; padding, novel classes and pixels without class are ignored."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from PIL import Image

from ovd_d2.config import add_ovd_config
from ovd_d2.data.build import build_test_loader, build_train_loader
from ovd_d2.data.mappers.choice import check_numbers_of_label_maps, mapper_for
from ovd_d2.data.mappers.detection import OpenVocabDatasetMapper
from ovd_d2.data.mappers.segmentation import SemanticSegmentationMapper
from ovd_d2.errors import OVDError
from ovd_d2.files.images import UnreadableImageError

NAME = "mapped_maps"
CLASSES = ["sky", "road", "ant"]
HEIGHT, WIDTH = 30, 50


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (NAME,), (NAME,)
    cfg.INPUT.MIN_SIZE_TRAIN = (60,)
    cfg.INPUT.MIN_SIZE_TEST = 60
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.FORMAT = "RGB"
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


@pytest.fixture
def record(tmp_path):
    """Four quarters, each of its colour: sky, road, ant, and no class."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[:15, 25:], labels[15:, :25], labels[15:, 25:] = 1, 2, 255
    pixels = np.stack([labels == 0, labels == 1, labels == 2], axis=2) | (labels == 255)[..., None]
    Image.fromarray(pixels.astype(np.uint8) * 255).save(tmp_path / "x_image.png")
    Image.fromarray(labels).save(tmp_path / "x_map.png")
    record = {"file_name": str(tmp_path / "x_image.png"), "image_id": "x",
              "sem_seg_file_name": str(tmp_path / "x_map.png")}  # fmt: skip
    DatasetCatalog.register(NAME, lambda: [record])
    describe()
    yield record
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def describe(**changes):
    """Metadata do not let themselves be changed."""
    MetadataCatalog.pop(NAME, None)
    facts = {"stuff_classes": CLASSES, "evaluator_type": "sem_seg", "ignore_label": 255}
    MetadataCatalog.get(NAME).set(**{**facts, **changes})


def numbers_in(image, padding):
    """Class numbers by colour; -1 where colours are mixed, 255 for white and for padding."""
    found = torch.full(image.shape[1:], -1)
    for number, colour in ((0, (255, 0, 0)), (1, (0, 255, 0)), (2, (0, 0, 255)),
                           (255, (255, 255, 255)), (255, (padding,) * 3)):  # fmt: skip
        found[(image == torch.tensor(colour).view(3, 1, 1)).all(dim=0)] = number
    return found


@pytest.mark.parametrize("flip", ["horizontal", "vertical", "none"])
@pytest.mark.parametrize("kind", ["resize", "crop", "jitter", "square"])
def test_the_map_goes_with_the_image(cfg, record, kind, flip):
    cfg.INPUT.RANDOM_FLIP = flip
    if kind == "crop":
        cfg.INPUT.CROP.ENABLED = True
    if kind == "jitter":
        cfg.INPUT.SCALE_JITTER.update(
            {"ENABLED": True, "MIN_SCALE": 0.7, "SIZE": 64, "PAD_VALUE": 33.0}
        )
    cfg.INPUT.SQUARE = 40 if kind == "square" else 0
    mapper = mapper_for(cfg, NAME, is_train=True)
    assert type(mapper) is SemanticSegmentationMapper
    seen = set()
    for _ in range(12):
        sample = mapper(record)
        labels = sample["sem_seg"]
        assert labels.shape == sample["image"].shape[1:]
        assert labels.dtype == torch.int64
        expected = numbers_in(sample["image"], 33)
        pure = expected >= 0
        assert pure.float().mean() > 0.8
        assert (labels[pure] == expected[pure]).all()
        seen |= set(labels.unique().tolist())
    assert seen == {0, 1, 2, 255}
    assert (kind != "square") or labels.shape == (40, 40)
    assert (kind != "jitter") or labels.shape == (64, 64)


def test_same_as_detectron2(cfg, record):
    cfg.INPUT.CROP.ENABLED = True
    samples = []
    for kind in (DatasetMapper, SemanticSegmentationMapper):
        np.random.seed(0)  # noqa: NPY002 (Detectron2 draws from it)
        samples.append(kind(cfg, True)(record))
    assert (samples[0]["image"] == samples[1]["image"]).all()
    assert (samples[0]["sem_seg"] == samples[1]["sem_seg"]).all()
    assert samples[0].keys() == samples[1].keys()
    assert (samples[1]["height"], samples[1]["width"]) == (HEIGHT, WIDTH)


def test_ignored_pixels_get_the_models_value(cfg, record):
    cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 99
    labels = SemanticSegmentationMapper(cfg, True)(record)["sem_seg"]
    assert set(labels.unique().tolist()) == {0, 1, 2, 99}


def test_novel_classes_are_ignored_in_training(cfg, record):
    cfg.DATASETS.NOVEL_NAMES = ["road"]
    labels = SemanticSegmentationMapper(cfg, True)(record)["sem_seg"]
    assert set(labels.unique().tolist()) == {0, 2, 255}
    cfg.DATASETS.NOVEL_NAMES = []
    MetadataCatalog.get(NAME).set(is_novel=[False, False, True])
    labels = SemanticSegmentationMapper(cfg, True)(record)["sem_seg"]
    assert set(labels.unique().tolist()) == {0, 1, 255}


def test_more_classes_than_a_byte_has(cfg, record, tmp_path):
    wide = np.kron([[0, 254], [255, 299]], np.ones((15, 25))).astype(np.uint16)
    wide[0, 0] = 65535
    Image.fromarray(wide).save(tmp_path / "x_map.png")
    describe(stuff_classes=[f"c{i}" for i in range(300)], ignore_label=65535)
    cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = -1
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)
    mapper = SemanticSegmentationMapper(cfg, True)
    expected = torch.from_numpy(wide.astype(np.int64))
    expected[0, 0] = -1
    assert (mapper(record)["sem_seg"] == expected).all()
    cfg.INPUT.SCALE_JITTER.update({"ENABLED": True, "SIZE": 64, "MAX_SCALE": 1.0})
    labels = SemanticSegmentationMapper(cfg, True)(record)["sem_seg"]
    assert set(labels.unique().tolist()) == {-1, 0, 254, 255, 299}  # padding is no class


def test_few_shot_records_count_their_own_two_names(cfg, record):
    describe(evaluator_type="few_shot_sem_seg")
    cfg.INPUT.SQUARE = 20
    cfg.DATASETS.NOVEL_NAMES = ["road"]  # has no say here
    episode = {**record, "class_names": ("others", "ant"), "label_values": "one:2:255"}
    sample = mapper_for(cfg, NAME, is_train=True)(episode)
    assert sample["class_names"] == ("others", "ant")
    assert set(sample["sem_seg"].unique().tolist()) == {0, 1, 255}
    sample = mapper_for(cfg, NAME, is_train=False)(episode)
    assert sample["image"].shape == (3, 20, 20)
    assert (sample["height"], sample["width"]) == (20, 20)
    sample = mapper_for(cfg, NAME, is_train=False)(record)
    assert (sample["height"], sample["width"]) == (HEIGHT, WIDTH)


def test_which_mapper(cfg, record):
    for name, train, test in (
        ("OpenVocabDatasetMapper", SemanticSegmentationMapper, SemanticSegmentationMapper),
        ("ImageTextPairMapper", None, SemanticSegmentationMapper),
    ):
        cfg.INPUT.MAPPER = name
        assert type(mapper_for(cfg, NAME, is_train=False)) is test
        if train:
            assert type(mapper_for(cfg, NAME, is_train=True)) is train
    cfg.INPUT.MAPPER = "OpenVocabDatasetMapper"
    describe(evaluator_type="coco")
    assert type(mapper_for(cfg, NAME, is_train=True)) is OpenVocabDatasetMapper


def test_loaders(cfg, record):
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SEED = 1
    batch = next(iter(build_train_loader(cfg)))
    assert [sample["sem_seg"].shape for sample in batch] == [(60, 100)] * 2
    (sample,) = next(iter(build_test_loader(cfg, NAME)))
    assert "sem_seg" not in sample
    assert sample["image"].shape == (3, 60, 100)


def test_what_is_refused(cfg, record, tmp_path):
    mapper = SemanticSegmentationMapper(cfg, True)
    Image.fromarray(np.full((HEIGHT, WIDTH), 3, np.uint8)).save(tmp_path / "x_map.png")
    with pytest.raises(OVDError, match="x_map.png holds the value 3, .* has 3 classes"):
        mapper(record)
    cfg.SEED = 1
    cfg.SOLVER.IMS_PER_BATCH = 1
    with pytest.raises(OVDError, match="x_map.png holds the value 3"):
        next(iter(build_train_loader(cfg)))
    Image.fromarray(np.zeros((WIDTH, HEIGHT), np.uint8)).save(tmp_path / "x_map.png")
    with pytest.raises(OVDError, match="x_map.png has 30 x 50 pixels, its image .* 50 x 30"):
        mapper(record)
    (tmp_path / "x_map.png").write_bytes(b"?")
    with pytest.raises(UnreadableImageError, match="Cannot read the label map"):
        mapper(record)
    with pytest.raises(OVDError, match="set INPUT.MAPPER SemanticSegmentationMapper"):
        OpenVocabDatasetMapper(cfg, True)({**record, "label_values": "from_1"})
    describe(stuff_classes=[])
    with pytest.raises(OVDError, match=f"{NAME} does not name its classes"):
        SemanticSegmentationMapper(cfg, True)


def test_data_sets_of_different_classes_are_not_one(cfg, record):
    cfg.DATASETS.TRAIN = (NAME, "voc_2012_sem_seg_train")
    with pytest.raises(OVDError, match="have different classes"):
        SemanticSegmentationMapper(cfg, True)
    other = cfg.clone()
    other.DATASETS.TRAIN = ("voc_2012_sem_seg_train",)
    cfg.DATASETS.TRAIN = (NAME,)
    with pytest.raises(OVDError, match="Source 'voc' .* whose classes are not those of dataset:"):
        check_numbers_of_label_maps(cfg, [("own", cfg), ("voc", other)])
    cfg.DATASETS.TRAIN = ("voc_2012_sem_seg_train_aug",)
    check_numbers_of_label_maps(cfg, [("voc", other)])
