"""Registers the mini benchmark with Detectron2; no data file is touched before it is used."""

from __future__ import annotations

import os
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.data.datasets.annotation_check import LVIS
from ovd_d2.data.datasets.annotation_files import check_records, read_annotations
from ovd_d2.data.datasets.annotation_records import lvis_records
from ovd_d2.data.datasets.mini.categories import load_categories
from ovd_d2.data.datasets.mini.splits import ANNOTATION_SETS, VERSION
from ovd_d2.errors import OVDError

SECTION = "mini"
# Data set name -> annotation file without suffix.
DATASETS = {f"mini_v1_{name}": name for name in ANNOTATION_SETS}


def register_mini(root: str | os.PathLike[str]) -> None:
    """Registers mini_v1_train_all, _train_base, _val, _val_seen and _test.

    All share K = 160 classes. Their metadata has ``thing_classes``, ``synonyms``, ``definitions``,
    ``is_novel`` (in train_all: all False; in train_base: what has no boxes; in val, val_seen and
    test: the split of AP_novel), ``class_image_count`` of the training images that goes with it,
    ``json_file``, ``image_root`` and ``evaluator_type`` "lvis".

    Args:
        root: folder of all data sets; the benchmark is in ``root``/mini-v1.
    """
    folder = os.path.join(os.fspath(root), VERSION)
    for name, annotation_set in DATASETS.items():
        json_file = os.path.join(folder, "annotations", f"{annotation_set}.json")
        # Detectron2's loader appends the folder in coco_url to this string.
        image_root = os.path.join(folder, "images", "")
        DatasetCatalog.register(name, lambda j=json_file, i=image_root: load_mini(j, i))
        MetadataCatalog.get(name).set(
            json_file=json_file,
            image_root=image_root,
            evaluator_type="lvis",
            readme_section=SECTION,
            prepare_command="ovd mini build",
            **class_metadata(annotation_set),
        )


def load_mini(json_file: str, image_root: str) -> list[dict[str, Any]]:
    """Detectron2's data set records of one annotation file.

    Raises:
        OVDError: the benchmark is not built, or the file or image folder is damaged.
    """
    if not os.path.exists(json_file):
        raise OVDError(
            f"{json_file} is missing: run `ovd mini build` "
            f"(section '{SECTION}' of datasets/README.md)."
        )
    records = lvis_records(read_annotations(json_file, SECTION, LVIS), image_root)
    check_records(records, json_file, SECTION)
    return records


def class_metadata(annotation_set: str) -> dict[str, Any]:
    """What the metadata of a data set say about its classes; reads no data file."""
    categories = load_categories()
    base_only = annotation_set == "train_base"
    novel = [c.is_novel and annotation_set != "train_all" for c in categories]
    return {
        "thing_classes": [c.name for c in categories],
        "synonyms": [list(c.synonyms) for c in categories],
        "definitions": [c.definition for c in categories],
        "is_novel": novel,
        "class_image_count": [
            {
                "id": index + 1,
                "image_count": 0 if base_only and c.is_novel else c.train_images,
            }
            for index, c in enumerate(categories)
        ],
    }
