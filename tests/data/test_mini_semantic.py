"""Label maps of mini: exactly its masks, and nothing of novel objects in training."""

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.benchmarks.mini.outlines import mask_to_polygons
from ovd_d2.data.datasets.mini.categories import load_categories
from ovd_d2.data.datasets.semantic import read_label_map
from ovd_d2.data.datasets.semantic.label_maps import paint_masks
from ovd_d2.language import Vocabulary

IMAGES = 40


def maps_of(name):
    count = len(MetadataCatalog.get(name).stuff_classes)
    return np.stack([read_label_map(r, count) for r in DatasetCatalog.get(name)[:IMAGES]])


@pytest.fixture(scope="module")
def boxes(mini_root):
    """The records for detection of the same training images."""
    return DatasetCatalog.get("mini_v1_train_all")[:IMAGES]


def test_polygons_come_back_as_the_same_pixels():
    mask = np.random.default_rng(0).random((20, 30)) < 0.5  # holes, corners, single pixels
    found = paint_masks([{"segmentation": mask_to_polygons(mask), "class": 3}], (20, 30))
    assert (found == np.where(mask, 3, 0)).all()


def test_objects_are_where_their_masks_are(boxes):
    found = maps_of("mini_v1_sem_seg_train_all")
    for image, labels in zip(boxes, found, strict=True):
        areas = np.bincount(labels.reshape(-1), minlength=161)
        expected = np.zeros(161)
        for annotation in image["annotations"]:
            mask = [{"segmentation": annotation["segmentation"], "class": 1}]
            expected[annotation["category_id"] + 1] += paint_masks(mask, labels.shape).sum()
        assert (areas[1:] == expected[1:]).all()  # no two objects overlap
        assert areas[0] == labels.size - expected.sum()


def test_novel_objects_are_ignored_in_training(boxes):
    novel = np.array([False, *(c.is_novel for c in load_categories())])
    everything, base = maps_of("mini_v1_sem_seg_train_all"), maps_of("mini_v1_sem_seg_train_base")
    expected = np.where(novel[everything], 255, everything)
    assert (expected == 255).any()
    assert (base == expected).all()
    for record in DatasetCatalog.get("mini_v1_sem_seg_train_base"):
        classes = [mask["class"] for mask in record["sem_seg_masks"]]
        assert not any(c is not None and novel[c] for c in classes)


def test_without_background(boxes):
    with_it, without = (
        maps_of("mini_v1_sem_seg_train_all"),
        maps_of("mini_v1_objects_sem_seg_train_all"),
    )
    assert (without == np.where(with_it == 0, 255, with_it - 1)).all()


def test_classes(boxes):
    for split in ("train_all", "train_base", "val", "val_seen", "test"):
        things = Vocabulary.from_metadata(f"mini_v1_{split}")
        alone = Vocabulary.from_metadata(f"mini_v1_objects_sem_seg_{split}")
        assert (alone.names, alone.is_novel) == (things.names, things.is_novel)
        found = Vocabulary.from_metadata(f"mini_v1_sem_seg_{split}")
        assert found.names == ("background", *things.names)
        assert found.is_novel == (False, *things.is_novel)
        assert sum(found.is_novel) == (0 if split == "train_all" else 40)
