"""RefCOCO, RefCOCO+ and RefCOCOg: one sentence, one object of a COCO train2014 image.

The files are those that MDETR publishes (finetune_refcoco_val.json ...), in COCO's layout: each
expression is an "image" of its own, with its sentence as ``caption`` and exactly one annotation.
"""

from collections import defaultdict
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.data.datasets.annotation_files import check_records, read_annotations
from ovd_d2.data.datasets.annotation_records import coco_records
from ovd_d2.errors import OVDError

README_SECTION = "RefCOCO"

# data set -> its evaluation splits
SPLITS = {
    "refcoco": ("val", "testA", "testB"),
    "refcoco+": ("val", "testA", "testB"),
    "refcocog": ("val", "test"),
}


def load_referring_expressions(json_file: str, image_root: str) -> list[dict[str, Any]]:
    """One record for each expression, in the order of their ids.

    Args:
        json_file: such as finetune_refcoco_val.json.
        image_root: the folder train2014/ of COCO.

    Returns:
        Dicts with ``file_name``, ``height``, ``width`` (pixels), ``image_id`` (the expression's
        own), ``caption``, ``dataset_name`` ("" if the file does not say) and ``phrases``: one dict
        with ``spans`` (one, all characters of the caption), ``types`` (none) and ``boxes`` (one,
        x0, y0, x1, y1 in pixels).

    Raises:
        OVDError: the file or the image folder is missing or broken, or an expression has no caption
            or not exactly one box.
    """
    content = read_annotations(json_file, README_SECTION)
    boxes = defaultdict(list)
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        boxes[annotation["image_id"]].append([x, y, x + width, y + height])
    images = {image["id"]: image for image in content["images"]}
    records = coco_records({**content, "annotations": []}, image_root, {})
    for record in records:
        image = images[record["image_id"]]
        caption, found = image.get("caption"), boxes[image["id"]]
        if type(caption) is not str or not caption.strip() or len(found) != 1:
            raise OVDError(
                f"{json_file}: image {image['id']} has {len(found)} boxes and the caption "
                f"{caption!r:.40}; an expression has a caption and one box, see section "
                f"'{README_SECTION}' of datasets/README.md."
            )
        record.pop("annotations")
        record["caption"] = caption
        record["dataset_name"] = image.get("dataset_name", "")
        record["phrases"] = [{"spans": [(0, len(caption))], "types": [], "boxes": found}]
    check_records(records, json_file, README_SECTION)
    return records


def register_referring_expressions(name: str, json_file: str, image_root: str) -> None:
    """Registers a split for the evaluation of referring expressions; reads no file."""
    DatasetCatalog.register(name, lambda: load_referring_expressions(json_file, image_root))
    MetadataCatalog.get(name).set(
        json_file=json_file,
        image_root=image_root,
        evaluator_type="refexp",
        readme_section=README_SECTION,
    )
