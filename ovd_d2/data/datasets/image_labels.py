"""Images with labels, and one pseudo box for each label, from a json file.

In ``DATASETS.TRAIN`` such a file is named by where it is, "labels:FILE.json". `ovd pseudo-label`
writes it; section "Image labels" of datasets/README.md says what is in it. Its annotations are of
``Supervision.IMAGE_LABEL``: the class is meant, the box is a guess, and the rest of the image is
not said to be empty.
"""

import gc
import json
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ovd_d2.data.datasets.annotation_files import check_records, explain_errors
from ovd_d2.errors import OVDError
from ovd_d2.structures import Supervision

logger = logging.getLogger(__name__)

PREFIX = "labels:"
KIND = "ovd_d2 image labels"
README_SECTION = "Image labels"


@dataclass(frozen=True)
class ImageLabels:
    """Content of one file.

    Attributes:
        names: of the K classes, in the order of the file's ``categories``.
        records: in Detectron2's dataset format, one per image that has a label with a box;
            ``category_id`` is an index into ``names``. Boxes are in the frame of the image as its
            EXIF orientation turns it.
        dataset: the data set whose images and image ids these are, "" if the file does not say.
    """

    names: tuple[str, ...]
    records: list[dict[str, Any]]
    dataset: str = ""


def register_image_labels(name: str) -> bool:
    """Registers the data set "labels:FILE" with Detectron2; the file is read when it is used.

    Returns:
        whether ``name`` is of that form; if not, nothing happens.
    """
    if not name.startswith(PREFIX):
        return False
    if name not in DatasetCatalog.list():
        path = os.path.expanduser(name.removeprefix(PREFIX))

        def load() -> list[dict[str, Any]]:
            labels = load_image_labels(path)
            MetadataCatalog.get(name).set(
                thing_classes=list(labels.names), images_of=labels.dataset
            )
            return labels.records

        DatasetCatalog.register(name, load)
        MetadataCatalog.get(name).set(
            json_file=path, prepare_command="ovd pseudo-label", readme_section=README_SECTION
        )
    return True


def load_image_labels(path: str | os.PathLike) -> ImageLabels:
    """Reads a file of image labels.

    Labels without a box, or with one of no area, are left out; so are images that have no other
    label. A log line counts both.

    Args:
        path: a json file.

    Raises:
        OVDError: no file, no json, another kind of file, or a wrong entry, which is named.
    """
    path = os.fspath(path)
    with explain_errors(path, README_SECTION), _uncollected():
        content = json.loads(Path(path).read_bytes())
        info = content["info"]
        if info.get("kind") != KIND:
            raise OVDError(
                f"{path} is no file of image labels (its info.kind is {info.get('kind')!r}, not "
                f"{KIND!r}): make one with `ovd pseudo-label`."
            )
        index_of = _index_of_categories(content["categories"], path)
        root = os.path.join(os.path.dirname(path), os.path.expanduser(info.get("image_root", "")))
        records = _records_by_id(content["images"], root, path)
        annotations = content["annotations"]
        boxless = _add_annotations(records, annotations, index_of, path)
    kept = [record for record in records.values() if record["annotations"]]
    if boxless or len(kept) < len(records):
        logger.warning(
            "%s: %d of %d labels have no box and are left out, and so are %d of %d images, which "
            "have no other label.",
            path, boxless, len(annotations), len(records) - len(kept), len(records),
        )  # fmt: skip
    check_records(kept, path, README_SECTION)
    logger.info("%s: %d images with %d labels.", path, len(kept), len(annotations) - boxless)
    names = tuple(category["name"] for category in content["categories"])
    return ImageLabels(names, kept, str(info.get("dataset") or ""))


@contextmanager
def _uncollected() -> Iterator[None]:
    """Inside, no garbage is searched for: among millions of new dicts that takes half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _index_of_categories(categories: list[dict[str, Any]], path: str) -> dict[Any, int]:
    """Category id -> index."""
    if not isinstance(categories, list) or not categories:
        raise OVDError(f"{path} has no categories: make it again with `ovd pseudo-label`.")
    for category in categories:
        if not isinstance(category["name"], str) or not category["name"].strip():
            raise OVDError(f"{path}: the name of category {category['id']!r} is no text; name it.")
    index_of = {category["id"]: index for index, category in enumerate(categories)}
    if len(index_of) < len(categories):
        raise OVDError(f"{path} has two categories of the same id; give each its own.")
    return index_of


def _records_by_id(images: list[dict[str, Any]], root: str, path: str) -> dict[Any, dict[str, Any]]:
    """Image id -> its record, without annotations yet."""
    records: dict[Any, dict[str, Any]] = {}
    for image in images:
        image_id, height, width = image["id"], image["height"], image["width"]
        if type(image_id) not in (int, str) or image_id in records:
            raise OVDError(
                f"{path}: the image id {image_id!r} comes twice or is neither a whole number nor "
                "text; give every image its own."
            )
        if type(height) is not int or type(width) is not int or height < 1 or width < 1:
            raise OVDError(
                f"{path}: image {image_id!r} is {width} x {height} pixels large; give width and "
                "height as they are after turning it by its EXIF orientation."
            )
        if not isinstance(image["file_name"], str) or not image["file_name"]:
            raise OVDError(f"{path}: image {image_id!r} has no file_name; add it.")
        records[image_id] = {
            "file_name": os.path.join(root, image["file_name"]),
            "image_id": image_id,
            "height": height,
            "width": width,
            "annotations": [],
        }
    return records


def _add_annotations(
    records: dict[Any, dict[str, Any]],
    annotations: list[dict[str, Any]],
    index_of: dict[Any, int],
    path: str,
) -> int:
    """Puts every annotation with a box into its record; returns how many have none."""
    boxless = 0
    for number, annotation in enumerate(annotations):
        where = f"{path}: annotation {annotation.get('id', f'number {number + 1}')}"
        image_id, category_id = annotation["image_id"], annotation["category_id"]
        if image_id not in records:
            raise OVDError(
                f"{where} is of image {image_id!r}, which `images` does not list: add the image or "
                "remove the annotation."
            )
        if category_id not in index_of:
            raise OVDError(
                f"{where} is of category {category_id!r}, which `categories` does not list: add "
                "the category or remove the annotation."
            )
        box = annotation.get("bbox")
        if box is not None:
            box = _checked_box(box, where)
        if box is None or box[2] <= 0 or box[3] <= 0:
            boxless += 1
            continue
        records[image_id]["annotations"].append(
            {
                "bbox": box,
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": index_of[category_id],
                "supervision": int(Supervision.IMAGE_LABEL),
            }
        )
    return boxless


def _checked_box(box: Any, where: str) -> list[float]:
    numbers = isinstance(box, list) and all(
        type(value) in (int, float) and math.isfinite(value) for value in box
    )
    if not numbers or len(box) != 4:
        raise OVDError(
            f"{where} has the bbox {box}; it must be [x, y, width, height] in pixels, or left out."
        )
    return [float(value) for value in box]
