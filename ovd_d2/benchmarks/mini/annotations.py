"""LVIS v1 and COCO annotation files of the mini benchmark, from the records of drawn images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ovd_d2.data.datasets.mini.categories import load_categories
from ovd_d2.data.datasets.mini.splits import IMAGE_SIZE, VERSION


@dataclass(frozen=True)
class ObjectRecord:
    """``bbox`` is x, y, width, height in pixels; ``polygons`` see ``mask_to_polygons``."""

    category: int
    style: str
    bbox: tuple[int, int, int, int]
    area: int
    polygons: list[list[int]]


@dataclass(frozen=True)
class ImageRecord:
    """One drawn image: ``file_name`` like "train/000001.jpg", with the sha256 of its bytes."""

    image_id: int
    file_name: str
    sha256: str
    objects: tuple[ObjectRecord, ...]
    caption: str
    object_captions: tuple[str, ...]


def box_of_mask(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The tight box of a non-empty (H, W) bool mask: x, y, width, height."""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1


def lvis_annotations(images: list[ImageRecord], *, base_only: bool = False) -> dict[str, Any]:
    """One LVIS v1 file.

    Every object of every category is labelled, so each image's ``neg_category_ids`` are all
    categories it does not show, and ``not_exhaustive_category_ids`` is empty.

    Args:
        base_only: leave out everything about novel categories but their names: boxes, training
            counts and which images lack them. The images stay.
    """
    categories = load_categories()
    allowed = [i for i, c in enumerate(categories) if not (base_only and c.is_novel)]
    image_entries, annotations = [], []
    for image in images:
        shown = {item.category for item in image.objects}
        image_entries.append(
            {
                "id": image.image_id,
                "file_name": image.file_name,
                # Detectron2's and LVIS's loaders take folder and name from this field.
                "coco_url": image.file_name,
                "width": IMAGE_SIZE,
                "height": IMAGE_SIZE,
                "neg_category_ids": [i + 1 for i in allowed if i not in shown],
                "not_exhaustive_category_ids": [],
                "license": 1,
            }
        )
        for number, item in enumerate(image.objects):
            if item.category in set(allowed):
                annotations.append(_annotation(image, number, item))
    instance_counts = np.bincount(
        [a["category_id"] - 1 for a in annotations], minlength=len(categories)
    )
    return {
        "info": {"description": f"ovd_d2 {VERSION}", "version": VERSION},
        "licenses": [{"id": 1, "name": "see datasets/README.md, section mini", "url": ""}],
        "images": image_entries,
        "annotations": annotations,
        "categories": [
            {
                "id": index + 1,
                "name": category.name,
                "synset": category.name.replace(" ", "_") + ".n.01",
                "synonyms": list(category.synonyms),
                "def": category.definition,
                "frequency": category.frequency,
                "image_count": category.train_images if index in set(allowed) else 0,
                "instance_count": int(instance_counts[index]),
                "group": category.group,
            }
            for index, category in enumerate(categories)
        ],
    }


def _annotation(image: ImageRecord, number: int, item: ObjectRecord) -> dict[str, Any]:
    return {
        "id": image.image_id * 100 + number,
        "image_id": image.image_id,
        "category_id": item.category + 1,
        "bbox": [float(value) for value in item.bbox],
        "area": float(item.area),
        "segmentation": item.polygons,
        "style": item.style,
    }


def coco_annotations(lvis: dict[str, Any]) -> dict[str, Any]:
    """The same file with the fields that COCO's tools expect and without LVIS's own."""
    return {
        "info": lvis["info"],
        "licenses": lvis["licenses"],
        "images": [
            {key: image[key] for key in ("id", "file_name", "width", "height", "license")}
            for image in lvis["images"]
        ],
        "annotations": [
            {key: value for key, value in annotation.items() if key != "style"} | {"iscrowd": 0}
            for annotation in lvis["annotations"]
        ],
        "categories": [
            {"id": c["id"], "name": c["name"], "supercategory": c["group"]}
            for c in lvis["categories"]
        ],
    }


def image_text_pairs(images: list[ImageRecord]) -> list[dict[str, Any]]:
    """One entry per image and one per object, of all categories.

    An entry has ``file_name`` (below images/), ``caption``, ``category_ids`` and, for an object,
    ``box`` (x0, y0, x1, y1 in pixels of the image).
    """
    pairs: list[dict[str, Any]] = []
    for image in images:
        ids = sorted({item.category + 1 for item in image.objects})
        pairs.append({"file_name": image.file_name, "caption": image.caption, "category_ids": ids})
        for item, caption in zip(image.objects, image.object_captions, strict=True):
            x, y, w, h = item.bbox
            pairs.append(
                {
                    "file_name": image.file_name,
                    "box": [x, y, x + w, y + h],
                    "caption": caption,
                    "category_ids": [item.category + 1],
                }
            )
    return pairs
