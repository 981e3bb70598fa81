"""LVIS's lists of classes that are known to be absent from an image, up to the samples."""

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ovd_d2.config import add_ovd_config
from ovd_d2.data.build import build_train_loader
from ovd_d2.data.held_out import with_absent_classes
from ovd_d2.errors import OVDError

NAME = "absent_classes_test"


@pytest.fixture
def dataset(tmp_path):
    """Registers records of the classes cat, owl and mug with the given lists of ids from 1."""

    def register(*lists, **metadata):
        Image.new("RGB", (32, 32)).save(tmp_path / "0.png")
        box = {"bbox": [2, 2, 20, 20], "bbox_mode": 0, "category_id": 1}
        record = {"file_name": str(tmp_path / "0.png"), "image_id": 0, "width": 32, "height": 32,
                  "annotations": [box]}  # fmt: skip
        given = [record if ids is None else {**record, "neg_category_ids": ids} for ids in lists]
        DatasetCatalog.register(NAME, lambda: given)
        MetadataCatalog.get(NAME).set(thing_classes=["cat", "owl", "mug"], **metadata)
        return given

    yield register
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def sample_of(vocabulary):
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.DATASETS.TRAIN = (NAME,)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.OPEN_VOCAB.VOCABULARY = "DetCLIP", vocabulary
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH = 0, 1
    return next(iter(build_train_loader(cfg)))[0]


def test_ids_become_class_numbers(dataset):
    given = dataset([3, 1], [], None)
    found = with_absent_classes(given, NAME)
    assert [record.get("absent_classes") for record in found] == [[2, 0], [], None]
    assert "absent_classes" not in given[0]


def test_by_the_ids_of_the_data_set(dataset):
    given = dataset([90, 7], thing_dataset_id_to_contiguous_id={7: 0, 8: 1, 90: 2})
    assert with_absent_classes(given, NAME)[0]["absent_classes"] == [2, 0]


def test_lists_that_say_nothing_of_any_image_are_none(dataset):
    """Detectron2's loader gives empty ones where the file has none."""
    given = dataset([], [])
    assert with_absent_classes(given, NAME) is given
    assert "absent_classes" not in sample_of("")


def test_an_id_of_no_class_is_refused(dataset):
    given = dataset([4])
    with pytest.raises(OVDError, match=f"{NAME} has the id 4 in neg_category_ids"):
        with_absent_classes(given, NAME)


@pytest.mark.parametrize(
    "vocabulary, box, absent", [("", 1, [2, 0]), ("mug, owl, emu, cat", 1, [0, 3])]
)
def test_a_sample_has_the_numbers_of_the_vocabulary(dataset, vocabulary, box, absent):
    dataset([3, 1])
    sample = sample_of(vocabulary)
    assert sample["absent_classes"].tolist() == absent
    assert sample["instances"].gt_classes.tolist() == [box]
