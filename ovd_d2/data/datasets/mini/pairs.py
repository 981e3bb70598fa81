"""The mini benchmark for image-text models: training pairs, and labelled objects to name."""

from __future__ import annotations

import os
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.data.datasets.annotation_files import check_records
from ovd_d2.data.datasets.image_text_pairs import load_pairs
from ovd_d2.data.datasets.mini.registration import SECTION, class_metadata, load_mini
from ovd_d2.data.datasets.mini.splits import VERSION
from ovd_d2.errors import OVDError

# Data set name -> whether scenes, whole images, are in it, and whether objects are.
PAIRS = {
    "mini_v1_pairs": (True, True),
    "mini_v1_object_pairs": (False, True),
    "mini_v1_scene_pairs": (True, False),
}
# Data set name -> annotation file without suffix.
OBJECTS = {f"mini_v1_objects_{name}": name for name in ("train_all", "val", "val_seen", "test")}


def register_mini_pairs(root: str | os.PathLike[str]) -> None:
    """Registers mini_v1_pairs, mini_v1_object_pairs, mini_v1_scene_pairs and
    mini_v1_objects_train_all, _val, _val_seen and _test.

    mini_v1_pairs: objects (with ``box``) and whole images of the training split with captions, base
    and novel alike; mini_v1_object_pairs: the objects alone; mini_v1_scene_pairs: the whole images
    alone. mini_v1_objects_*: one record per annotated box, with ``box`` and ``label`` 0..159;
    ``evaluator_type`` "classification", ``is_novel`` as in the detection splits.

    Args:
        root: folder of all data sets; the benchmark is in ``root``/mini-v1.
    """
    folder = os.path.join(os.fspath(root), VERSION)
    images = os.path.join(folder, "images")
    pairs = os.path.join(folder, "pairs.jsonl")
    for name, (scenes, objects) in PAIRS.items():
        DatasetCatalog.register(
            name,
            lambda s=scenes, o=objects: load_mini_pairs(pairs, images, scenes=s, objects=o),
        )
        MetadataCatalog.get(name).set(
            json_file=pairs,
            image_root=images,
            readme_section=SECTION,
            prepare_command="ovd mini build",
        )
    for name, annotation_set in OBJECTS.items():
        json_file = os.path.join(folder, "annotations", f"{annotation_set}.json")
        DatasetCatalog.register(name, lambda j=json_file: load_mini_objects(j, images))
        MetadataCatalog.get(name).set(
            json_file=json_file,
            image_root=images,
            evaluator_type="classification",
            readme_section=SECTION,
            prepare_command="ovd mini build",
            **class_metadata(annotation_set),
        )


def load_mini_pairs(
    path: str, image_root: str, *, scenes: bool = True, objects: bool = True
) -> list[dict[str, Any]]:
    """Records of pairs.jsonl: ``file_name``, ``caption``, ``image_id``, ``box`` of objects.

    Args:
        path: the file.
        image_root: where its image names start.
        scenes: with the pairs of whole images.
        objects: with the pairs of objects.

    Raises:
        OVDError: the benchmark is not built, or the file is damaged.
    """
    if not os.path.exists(path):
        raise OVDError(
            f"{path} is missing: run `ovd mini build` (section '{SECTION}' of datasets/README.md)."
        )
    records = [r for r in load_pairs(path, image_root) if (objects if "box" in r else scenes)]
    check_records(records, path, SECTION)
    return records


def load_mini_objects(json_file: str, image_root: str) -> list[dict[str, Any]]:
    """One record per annotated box, with the fields ``box`` and ``label``.

    Raises:
        OVDError: the benchmark is not built, or the file or image folder is damaged.
    """
    images = load_mini(json_file, os.path.join(image_root, ""))
    records = []
    for image in images:
        for annotation in image["annotations"]:
            x, y, width, height = annotation["bbox"]
            records.append(
                {
                    "file_name": image["file_name"],
                    "image_id": image["image_id"],
                    "box": (x, y, x + width, y + height),
                    "label": annotation["category_id"],
                }
            )
    return records
