"""Label maps of records: files of class numbers, or the masks of objects, as one array."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image

from ovd_d2.data.datasets.semantic.label_values import IGNORED, INVALID, value_table
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import is_special_file
from ovd_d2.files.images import MAX_PIXELS, UnreadableImageError

_FORMATS = ("PNG", "TIFF", "BMP", "GIF")  # without loss
_REMEDY = "a label map holds one class number per pixel"


def read_label_map(
    record: Mapping[str, Any],
    num_classes: int,
    ignore_label: int = 255,
    *,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """The class of every pixel of a record's image.

    Where the record has ``sem_seg_masks`` the map is made of them; otherwise it is the content of
    ``sem_seg_file_name``, numbers as they are (of a palette, its indices), by the table that
    ``label_values`` names if there is one.

    Args:
        record: ``sem_seg_file_name``; ``label_values``, see
            :mod:`~ovd_d2.data.datasets.semantic.label_values`; ``sem_seg_masks``, see
            :func:`paint_masks`.
        num_classes: K.
        ignore_label: value of pixels without a class.
        max_pixels: of a file; larger ones are refused before they are decoded, 0 for no limit.

    Returns:
        (H, W) int64 in [0, K) or ``ignore_label``.

    Raises:
        UnreadableImageError: a file that is missing or damaged.
        OVDError: one that is intact, but holds something else. Both name it.
    """
    name = os.fspath(record["sem_seg_file_name"])
    if "sem_seg_masks" in record:
        shape = record["height"], record["width"]
        labels = paint_masks(record["sem_seg_masks"], shape, ignore_label)
    else:
        values = _read_values(name, max_pixels)
        labels = _looked_up(values, record.get("label_values"), ignore_label, name)
    _check_classes(labels, num_classes, ignore_label, name)
    return labels


def paint_masks(
    masks: Sequence[Mapping[str, Any]], shape: tuple[int, int], ignore_label: int = 255
) -> np.ndarray:
    """A label map of the masks of objects, 0 where there is none.

    Args:
        masks: ``segmentation`` (polygons or RLE, as COCO's) and ``class``, a number or None for
            pixels to ignore, from the object that lies lowest to the one on top of all.
        shape: (H, W) of the map.
        ignore_label: value of pixels to ignore.

    Returns:
        (H, W) int64.
    """
    from pycocotools import mask as coco_mask

    labels = np.zeros(shape, np.int64)
    for mask in masks:
        outline = mask["segmentation"]
        if isinstance(outline, list):
            outline = coco_mask.merge(coco_mask.frPyObjects(outline, *shape))
        inside = coco_mask.decode(outline).astype(bool)
        labels[inside] = ignore_label if mask["class"] is None else mask["class"]
    return labels


def _read_values(name: str, max_pixels: int) -> np.ndarray:
    """(H, W) integers of a file: a picture, or Pascal Context's .mat."""
    try:
        if is_special_file(name):
            raise ValueError("it is no plain file but a pipe or a device")
        if name.endswith(".mat"):
            from scipy.io import loadmat

            return loadmat(name, variable_names=["LabelMap"])["LabelMap"].astype(np.int64)
        Image.init()
        formats = [known for known in _FORMATS if known in Image.OPEN]
        with PathManager.open(name, "rb") as file:
            image = Image.open(file, formats=formats)
            if max_pixels and image.width * image.height > max_pixels:
                size = f"{image.width} x {image.height}"
                raise ValueError(f"{size} pixels are more than INPUT.MAX_PIXELS = {max_pixels}")
            values = np.array(image)
    except FileNotFoundError:
        raise UnreadableImageError(
            f"The label map {name} does not exist: prepare the data set as datasets/README.md "
            "says.",
            name,
            "there is no such label map",
        ) from None
    except Exception as error:  # decoders raise anything on broken data
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise UnreadableImageError(
            f"Cannot read the label map {name} ({reason}): replace the file; {_REMEDY}.",
            name,
            reason,
        ) from error
    if values.ndim != 2 or values.dtype.kind not in "uib":
        raise OVDError(
            f"The label map {name} has shape {values.shape} and type {values.dtype}: {_REMEDY}, in "
            "one channel of whole numbers."
        )
    return values.astype(np.int64)


def _looked_up(
    values: np.ndarray, table_name: str | None, ignore_label: int, name: str
) -> np.ndarray:
    if table_name is None:
        return values
    table = value_table(table_name)
    if values.size and not 0 <= values.min() <= values.max() < len(table):
        raise _strange(name, int(values.max() if values.min() >= 0 else values.min()), table_name)
    labels = table[values]
    if (labels == INVALID).any():
        raise _strange(name, int(values[labels == INVALID][0]), table_name)
    labels[labels == IGNORED] = ignore_label
    return labels


def _strange(name: str, value: int, table_name: str) -> OVDError:
    return OVDError(
        f"The label map {name} holds the value {value}, which is none of its data set's "
        f"({table_name}): use the files that datasets/README.md names."
    )


def _check_classes(labels: np.ndarray, num_classes: int, ignore_label: int, name: str) -> None:
    strange = ((labels < 0) | (labels >= num_classes)) & (labels != ignore_label)
    if strange.any():
        raise OVDError(
            f"The label map {name} holds the value {int(labels[strange][0])}, but the data set has "
            f"{num_classes} classes, from 0 to {num_classes - 1}, and ignore_label {ignore_label}: "
            "correct the file, or stuff_classes or ignore_label in the data set's metadata."
        )
