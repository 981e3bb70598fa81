"""Annotation files of COCO and LVIS as Detectron2's dataset records, equal to its own loaders'."""

import os
from collections.abc import Mapping
from typing import Any

import pycocotools.mask as mask_utils
from detectron2.structures import BoxMode

_COPIED = ("iscrowd", "bbox", "keypoints")
_POINTS = 6  # numbers of the smallest polygon


def coco_records(
    content: Mapping[str, Any], image_root: str, contiguous: Mapping[Any, int]
) -> list[dict[str, Any]]:
    """One record per image, in the order of image ids.

    Args:
        content: of a COCO json that ``read_annotations`` has checked; not modified.
        image_root: the folder of its images.
        contiguous: category id -> class; annotations of other categories are passed over.
    """
    records = {
        image["id"]: {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": [],
        }
        for image in sorted(content["images"], key=lambda image: image["id"])
    }
    for annotation in content.get("annotations", ()):
        category = contiguous.get(annotation["category_id"])
        converted = None if category is None else _annotation(annotation, category)
        if converted is not None:
            records[annotation["image_id"]]["annotations"].append(converted)
    return list(records.values())


def lvis_records(content: Mapping[str, Any], image_root: str) -> list[dict[str, Any]]:
    """One record per image, in the order of image ids; ``category_id`` counts from 0.

    Args:
        content: of an LVIS json that ``read_annotations`` has checked; not modified.
        image_root: the folder that holds those which the images' ``coco_url`` names.
    """
    records = {}
    for image in sorted(content["images"], key=lambda image: image["id"]):
        folder, name = image["coco_url"].split("/")[-2:]
        records[image["id"]] = {
            "file_name": os.path.join(image_root, folder, name),
            "height": image["height"],
            "width": image["width"],
            "not_exhaustive_category_ids": image.get("not_exhaustive_category_ids", []),
            "neg_category_ids": image.get("neg_category_ids", []),
            "image_id": image["id"],
            "annotations": [],
        }
    for annotation in content["annotations"]:
        converted = _annotation(annotation, annotation["category_id"] - 1)
        if converted is not None:
            records[annotation["image_id"]]["annotations"].append(converted)
    return list(records.values())


def _annotation(annotation: Mapping[str, Any], category: int) -> dict[str, Any] | None:
    """None if its mask is no polygon at all, by Detectron2's rule."""
    converted = {key: annotation[key] for key in _COPIED if key in annotation}
    converted |= {"category_id": category, "bbox_mode": BoxMode.XYWH_ABS}
    mask = annotation.get("segmentation")
    if isinstance(mask, dict) and mask:
        if isinstance(mask["counts"], list):  # uncompressed, as COCO stores crowds
            mask = mask_utils.frPyObjects(mask, *mask["size"])
    elif mask:
        mask = [polygon for polygon in mask if len(polygon) >= _POINTS and len(polygon) % 2 == 0]
        if not mask:
            return None
    if mask:
        converted["segmentation"] = mask
    if annotation.get("keypoints"):  # pixel indices -> coordinates
        converted["keypoints"] = [
            value if place % 3 == 2 else value + 0.5
            for place, value in enumerate(annotation["keypoints"])
        ]
    return converted
