"""Anybody's own COCO json as a data set, named where it is used: "coco:IMAGE_FOLDER:LABELS.json".

Classes and their names are the json's categories in the order of their ids; a category may be
marked ``"is_novel": true``. Section "Own data" of datasets/README.md says more.
"""

import os
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.data.datasets.annotation_files import check_records, read_annotations
from ovd_d2.data.datasets.annotation_records import coco_records
from ovd_d2.errors import OVDError

PREFIX = "coco:"
README_SECTION = "Own data"


def register_coco_files(name: str) -> bool:
    """Registers the data set "coco:IMAGE_FOLDER:LABELS.json" with Detectron2; the file is read when
    it is used.

    Returns:
        whether ``name`` is of that form; if not, nothing happens.

    Raises:
        OVDError: it begins like one, but a part is missing.
    """
    if not name.startswith(PREFIX):
        return False
    image_root, _, json_file = name.removeprefix(PREFIX).rpartition(":")
    if not image_root or not json_file:
        raise OVDError(
            f"The data set {name!r} must be coco:IMAGE_FOLDER:LABELS.json, the folder of the "
            "images and their COCO json."
        )
    if name not in DatasetCatalog.list():
        image_root, json_file = os.path.expanduser(image_root), os.path.expanduser(json_file)
        DatasetCatalog.register(name, lambda: load_coco_file(name, json_file, image_root))
        MetadataCatalog.get(name).set(
            json_file=json_file,
            image_root=image_root,
            evaluator_type="coco",
            readme_section=README_SECTION,
        )
    return True


def load_coco_file(name: str, json_file: str, image_root: str) -> list[dict[str, Any]]:
    """Records in Detectron2's format; sets ``thing_classes`` and what else the categories say in
    the metadata of ``name``.

    Args:
        name: of the data set.
        json_file: in COCO's format; without annotations, it is a test set.
        image_root: the folder of its images.

    Raises:
        OVDError: file or folder is missing, or holds a wrong entry, which is named.
    """
    content = read_annotations(json_file, README_SECTION, needs_annotations=False)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    contiguous = {category["id"]: index for index, category in enumerate(categories)}
    metadata = MetadataCatalog.get(name).set(
        thing_classes=[category["name"] for category in categories],
        thing_dataset_id_to_contiguous_id=contiguous,
    )
    if any("is_novel" in category for category in categories):
        metadata.set(is_novel=[category.get("is_novel") is True for category in categories])
    records = coco_records(content, image_root, contiguous)
    check_records(records, json_file, README_SECTION)
    return records
