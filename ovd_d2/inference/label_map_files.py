"""Label maps as files: PNGs of class numbers, and COCO-style masks.

Letters: K classes; H, W height and width of a picture.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ovd_d2.files.atomic import atomic_write
from ovd_d2.visualization.label_maps import map_colour

ENDING = "_labels.png"
_PALETTE = 256


def labels_of(sem_seg: Tensor) -> np.ndarray:
    """(K, H, W) scores -> (H, W) int64, the class of the largest."""
    return sem_seg.argmax(dim=0).cpu().numpy()


def write_labels(path: Path, labels: np.ndarray, names: Sequence[str]) -> None:
    """Writes class numbers, from 0, as a PNG: with a palette of the classes' colours up to 256
    classes, in 16 bits beyond. As label maps of training data they are read as they are.

    Args:
        path: the file; it appears whole or not at all.
        labels: (H, W) in [0, K).
        names: of the K classes.
    """
    if len(names) <= _PALETTE:
        picture = Image.fromarray(labels.astype(np.uint8)).convert("P")
        picture.putpalette([part for k in range(len(names)) for part in map_colour(k, names)])
    else:
        picture = Image.fromarray(labels.astype(np.uint16))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    with atomic_write(path) as file:
        file.write(buffer.getvalue())


def coco_segments(labels: np.ndarray, image_id: int, first_id: int = 1) -> list[dict[str, Any]]:
    """One annotation per class in a label map: ``segmentation`` as RLE, ``bbox`` x y w h, ``area``
    in pixels; class k becomes category k + 1."""
    from pycocotools import mask as coco_mask

    rows = []
    for number, k in enumerate(np.unique(labels).tolist()):
        rle = coco_mask.encode(np.asfortranarray(labels == k, np.uint8))
        box, area = coco_mask.toBbox(rle).tolist(), int(coco_mask.area(rle))
        rle["counts"] = rle["counts"].decode()
        rows.append(
            {
                "id": first_id + number,
                "image_id": image_id,
                "category_id": k + 1,
                "segmentation": rle,
                "bbox": box,
                "area": area,
                "iscrowd": 0,
            }
        )
    return rows
