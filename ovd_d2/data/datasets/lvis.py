"""LVIS v1 for open-vocabulary detection: 866 base and 337 novel classes.

Base are the 405 frequent and 461 common classes, novel the 337 rare ones (Gu et al. 2022, "ViLD").
Training takes away the boxes of novel classes and keeps every image; evaluation uses all 1203
names at once, so K = 1203 in both. Minival (Kamath et al. 2021, "MDETR") are the validation images
that are not in COCO's training set.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis import get_lvis_instances_meta
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

from ovd_d2.data.datasets.annotation_check import LVIS
from ovd_d2.data.datasets.annotation_files import check_records, read_annotations
from ovd_d2.data.datasets.annotation_records import lvis_records
from ovd_d2.errors import OVDError

README_SECTION = "LVIS"
MINIVAL_IMAGES, VAL_IMAGES = 4809, 19_809

logger = logging.getLogger(__name__)

Records = list[dict[str, Any]]


def lvis_v1_metadata(*, train: bool) -> dict[str, Any]:
    """Metadata of the 1203 LVIS v1 classes in the order of their ids.

    Args:
        train: for the base training split. There ``class_image_count`` says in how many training
            images a class has annotations *left*: 0 for novel classes.

    Returns:
        ``thing_classes``, ``synonyms``, ``definitions``, ``is_novel`` (all of length 1203),
        ``class_image_count`` (dicts of ``id``, from 1, and ``image_count``), ``readme_section``.
    """
    categories = sorted(LVIS_CATEGORIES, key=lambda c: c["id"])
    builtin = get_lvis_instances_meta("lvis_v1")
    is_novel = [c["frequency"] == "r" for c in categories]
    counts = sorted(builtin["class_image_count"], key=lambda c: c["id"])
    if train:
        counts = [{**c, "image_count": 0} if n else c for c, n in zip(counts, is_novel)]
    return {
        "thing_classes": builtin["thing_classes"],
        "synonyms": [list(c["synonyms"]) for c in categories],
        "definitions": [c["def"] for c in categories],
        "is_novel": is_novel,
        "class_image_count": counts,
        "readme_section": README_SECTION,
    }


def minival(content: Mapping[str, Any], json_file: str) -> dict[str, Any]:
    """Of LVIS v1 val the images in val2017/ and their annotations, nothing else changed.

    Args:
        content: of lvis_v1_val.json; not modified.
        json_file: its path, for messages.

    Raises:
        OVDError: it is all of LVIS v1 val, but has not 4809 such images, or it has none. For a part
            of the file another number is a warning.
        KeyError: an image has no ``coco_url``.
    """
    images = [i for i in content["images"] if "/val2017/" in i["coco_url"]]
    if len(images) != MINIVAL_IMAGES:
        message = (
            f"{json_file} has {len(images)} images in val2017/, but LVIS minival is "
            f"{MINIVAL_IMAGES}: results are not comparable; use the lvis_v1_val.json that section "
            f"'{README_SECTION}' of datasets/README.md names."
        )
        if not images or len(content["images"]) == VAL_IMAGES:
            raise OVDError(message)
        logger.warning(message)
    ids = {image["id"] for image in images}
    annotations = [a for a in content["annotations"] if a["image_id"] in ids]
    return {**content, "images": images, "annotations": annotations}


def load_lvis_v1(
    json_file: str,
    image_root: str,
    *,
    removed_classes: Sequence[bool] | None = None,
    only_minival: bool = False,
) -> Records:
    """Records in Detectron2's format from an LVIS v1 json.

    Args:
        json_file: such as lvis_v1_train.json, with category ids from 1 to 1203.
        image_root: folder that holds train2017/ and val2017/.
        removed_classes: (1203,) classes of which no annotation, and no mention in
            ``neg_category_ids`` and ``not_exhaustive_category_ids``, is kept. Images stay, with or
            without annotations.
        only_minival: only the images of minival, see :func:`minival`.

    Returns:
        One dict per image; ``category_id`` counts from 0.

    Raises:
        OVDError: the file or the image folder is missing, broken or empty, or not LVIS v1.
    """
    content = read_annotations(json_file, README_SECTION, LVIS)
    if only_minival:
        content = minival(content, json_file)
    records = lvis_records(content, image_root)
    num_classes = len(LVIS_CATEGORIES)
    largest = max((a["category_id"] for r in records for a in r["annotations"]), default=0)
    if largest >= num_classes:
        raise OVDError(
            f"{json_file} has category id {largest + 1} but LVIS v1 ends at {num_classes}: use the "
            f"v1 file that section '{README_SECTION}' of datasets/README.md names."
        )
    if removed_classes is not None:
        _remove_classes(records, removed_classes)
        if not any(r["annotations"] for r in records):
            records = []  # nothing to learn from: reported as empty
    check_records(records, json_file, README_SECTION)
    return records


def _remove_classes(records: Records, removed: Sequence[bool]) -> None:
    for record in records:
        record["annotations"] = [a for a in record["annotations"] if not removed[a["category_id"]]]
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):  # ids from 1
            record[key] = [i for i in record[key] if not removed[i - 1]]


def register_lvis_ovd(
    name: str, json_file: str, image_root: str, *, train: bool, only_minival: bool = False
) -> None:
    """Registers a base training split (``train``) or an evaluation split, of all images or
    (``only_minival``) those of minival; reads no file."""
    metadata = lvis_v1_metadata(train=train)
    removed = metadata["is_novel"] if train else None
    DatasetCatalog.register(
        name,
        lambda: load_lvis_v1(
            json_file, image_root, removed_classes=removed, only_minival=only_minival
        ),
    )
    MetadataCatalog.get(name).set(
        json_file=json_file,
        image_root=image_root,
        evaluator_type="lvis",
        only_minival=only_minival,
        **metadata,
    )
