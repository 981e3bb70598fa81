"""Images with labels, and one pseudo box for each label, from a json file.

In ``DATASETS.TRAIN`` such a file is named by where it is, "labels:FILE.json". `ovd pseudo-label`
writes it; section "Image labels" of datasets/README.md says what is in it. Its annotations are of
``Supervision.IMAGE_LABEL``: the class is meant, the box is a guess, and the rest of the image is
not said to be empty.
"""

import logging
import os
from dataclasses import dataclass
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ovd_d2.data.datasets.annotation_check import LABELS, check_annotations
from ovd_d2.data.datasets.annotation_files import (
    check_records,
    explain_errors,
    read_json,
    uncollected,
)
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
    with explain_errors(path, README_SECTION), uncollected():
        content = read_json(path)
        info = content["info"]
        if info.get("kind") != KIND:
            raise OVDError(
                f"{path} is no file of image labels (its info.kind is {info.get('kind')!r}, not "
                f"{KIND!r}): make one with `ovd pseudo-label`."
            )
        check_annotations(content, path, LABELS)
        index_of = {category["id"]: index for index, category in enumerate(content["categories"])}
        root = os.path.join(os.path.dirname(path), os.path.expanduser(info.get("image_root", "")))
        records = {
            image["id"]: {
                "file_name": os.path.join(root, image["file_name"]),
                "image_id": image["id"],
                "height": image["height"],
                "width": image["width"],
                "annotations": [],
            }
            for image in content["images"]
        }
        annotations = content["annotations"]
        boxless = _add_annotations(records, annotations, index_of)
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


def _add_annotations(
    records: dict[Any, dict[str, Any]],
    annotations: list[dict[str, Any]],
    index_of: dict[Any, int],
) -> int:
    """Puts every annotation with a box into its record; returns how many have none."""
    boxless = 0
    for annotation in annotations:
        box = annotation.get("bbox")
        if box is None or box[2] <= 0 or box[3] <= 0:
            boxless += 1
            continue
        records[annotation["image_id"]]["annotations"].append(
            {
                "bbox": [float(value) for value in box],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": index_of[annotation["category_id"]],
                "supervision": int(Supervision.IMAGE_LABEL),
            }
        )
    return boxless
