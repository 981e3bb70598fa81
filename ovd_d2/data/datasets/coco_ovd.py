"""COCO for open-vocabulary detection: 48 base and 17 novel classes (Bansal et al. 2018).

Filtered at load time from the standard instances_train2017.json and instances_val2017.json. The
other 15 classes are unused. Training keeps the images with at least one base box, and only base
boxes; the generalised evaluation keeps the images with base or novel boxes, and base and novel
names compete. K = 65 in both, in the order of COCO's category ids.
"""

from collections.abc import Collection
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from ovd_d2.data.datasets.annotation_check import COCO, FileKind
from ovd_d2.data.datasets.annotation_files import check_records, read_annotations
from ovd_d2.data.datasets.annotation_records import coco_records
from ovd_d2.errors import OVDError

README_SECTION = "COCO"

BASE_CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "train", "truck", "boat", "bench", "bird"),
    *("horse", "sheep", "bear", "zebra", "giraffe", "backpack", "handbag", "suitcase", "frisbee"),
    *("skis", "kite", "surfboard", "bottle", "fork", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "pizza", "donut", "chair", "bed", "toilet"),
    *("tv", "laptop", "mouse", "remote", "microwave", "oven", "toaster", "refrigerator"),
    *("book", "clock", "vase", "toothbrush"),
)
NOVEL_CLASSES = (
    *("airplane", "bus", "cat", "dog", "cow", "elephant", "umbrella", "tie", "snowboard"),
    *("skateboard", "cup", "knife", "cake", "couch", "keyboard", "sink", "scissors"),
)


def coco_ovd_metadata() -> dict[str, Any]:
    """Metadata of the 65 classes.

    Returns:
        ``thing_classes`` and ``is_novel`` (length 65), ``thing_dataset_id_to_contiguous_id`` (COCO
        category id to 0..64) and ``readme_section``.
    """
    used = set(BASE_CLASSES) | set(NOVEL_CLASSES)
    categories = [c for c in COCO_CATEGORIES if c["isthing"] and c["name"] in used]
    categories.sort(key=lambda c: c["id"])
    return {
        "thing_classes": [c["name"] for c in categories],
        "is_novel": [c["name"] in NOVEL_CLASSES for c in categories],
        "thing_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(categories)},
        "readme_section": README_SECTION,
    }


def read_coco_json(
    json_file: str,
    category_ids: Collection[int],
    section: str | None = README_SECTION,
    kind: FileKind = COCO,
) -> dict[str, Any]:
    """Reads a COCO instances json and keeps some categories of it.

    Args:
        json_file: in the format of instances_val2017.json.
        category_ids: the categories to keep.
        section: of datasets/README.md that tells how to get the file.
        kind: whether images will be opened.

    Returns:
        The json's content with those categories (ascending ids), their annotations (crowds
        included) and the images that have at least one of them.

    Raises:
        OVDError: the file is missing or broken or lacks one of the categories.
    """
    content = read_annotations(json_file, section, kind)
    categories = {c["id"]: c for c in content["categories"]}
    annotations = [a for a in content["annotations"] if a["category_id"] in category_ids]
    with_annotations = {a["image_id"] for a in annotations}
    images = [i for i in content["images"] if i["id"] in with_annotations]
    missing = sorted(set(category_ids) - set(categories))
    if missing:
        raise OVDError(
            f"{json_file} lacks {len(missing)} of the {len(category_ids)} COCO categories of this "
            f"split (such as id {missing[0]}): use the standard file that section "
            f"'{section}' of datasets/README.md names."
        )
    return {
        **content,
        "categories": [categories[i] for i in sorted(category_ids)],
        "annotations": annotations,
        "images": images,
    }


def load_coco_ovd(json_file: str, image_root: str, *, base_only: bool) -> list[dict[str, Any]]:
    """Records in Detectron2's format from a standard COCO instances json.

    Args:
        json_file: instances_train2017.json or instances_val2017.json.
        image_root: the folder of its images.
        base_only: keep only annotations of base classes (for training).

    Returns:
        One dict per image with at least one annotation, in the order of image ids;
        ``category_id`` is in 0..64 and boxes are x, y, width, height in pixels.

    Raises:
        OVDError: the file or the image folder is missing, broken or empty.
    """
    metadata = coco_ovd_metadata()
    is_novel = metadata["is_novel"]
    contiguous = metadata["thing_dataset_id_to_contiguous_id"]
    kept = {i: c for i, c in contiguous.items() if not (base_only and is_novel[c])}
    content = read_coco_json(json_file, kept)
    records = coco_records(content, image_root, kept)
    check_records(records, json_file, README_SECTION)
    return records


def register_coco_ovd(name: str, json_file: str, image_root: str, *, train: bool) -> None:
    """Registers a base training split (``train``) or a generalised evaluation split.

    Reads no file.
    """
    DatasetCatalog.register(name, lambda: load_coco_ovd(json_file, image_root, base_only=train))
    MetadataCatalog.get(name).set(
        json_file=json_file, image_root=image_root, evaluator_type="coco_ovd", **coco_ovd_metadata()
    )
