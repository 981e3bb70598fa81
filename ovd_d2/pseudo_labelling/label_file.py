"""Label files: pseudo boxes in COCO's json with scores, and ``info`` on how they were made.

``{"info": {"kind", "version", "image_root", "detector", "labels", ...}, "images": [{"id",
"file_name", "height", "width"}], "categories": [{"id", "name"}], "annotations": [{"id", "image_id",
"category_id", "bbox": [x, y, width, height], "score", "area", "iscrowd"}]}``. Boxes are in pixels
of the image turned as its EXIF orientation says, to which ``height`` and ``width`` belong.
``image_root`` is the folder that ``file_name`` counts from: relative to the json's own folder or
absolute. Images without a box are not listed.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ovd_d2.data.datasets.annotation_check import LABELS, check_annotations
from ovd_d2.data.datasets.annotation_files import read_json
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import atomic_write
from ovd_d2.structures.grounding import Span

from .box_choice import Found

LABELS_KIND = "ovd_d2 image labels"
OBJECTS_KIND = "ovd_d2 proposals"
OBJECT_CATEGORY = {"id": 1, "name": "object"}


@dataclass(frozen=True)
class LabelledImage:
    """The pseudo boxes of an image.

    Attributes:
        image_id: of the data set.
        height, width: of the image, turned as its EXIF orientation says.
        boxes: (class, [x, y, width, height], score) each, in pixels of the image.
        without_box: labels for which no box was found.
        phrases: [begin, end) characters of the phrases of its caption, where classes are phrases.
    """

    image_id: int | str
    height: int
    width: int
    boxes: tuple[tuple[int, tuple[float, ...], float], ...]
    without_box: int = 0
    phrases: tuple[Span, ...] = ()


def labelled_image(
    image_id: int | str,
    image: Tensor,
    classes: Sequence[int],
    chosen: Sequence[Found],
    phrases: Sequence[Span] = (),
) -> LabelledImage:
    """The boxes of an image as they are written.

    Args:
        image_id: of the data set.
        image: (3, H, W).
        classes: of ``chosen``.
        chosen: boxes (Ri, 4) xyxy and scores (Ri,) of each class, none to leave it out.
        phrases: see :class:`LabelledImage`.
    """
    rows = []
    for index, (boxes, scores) in zip(classes, chosen):
        for box, score in zip(boxes.tolist(), scores.tolist()):
            x0, y0, x1, y1 = (round(value, 2) for value in box)
            xywh = (x0, y0, round(x1 - x0, 2), round(y1 - y0, 2))
            rows.append((int(index), xywh, round(score, 6)))
    without = sum(not len(boxes) for boxes, _ in chosen)
    height, width = image.shape[-2:]
    return LabelledImage(image_id, height, width, tuple(rows), without, tuple(phrases))


def write_label_file(
    path: str | os.PathLike,
    facts: Mapping[str, Any],
    file_names: Mapping[int | str, str],
    found: Iterable[LabelledImage],
    categories: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Writes a label file atomically.

    Args:
        path: the json.
        facts: for "info".
        file_names: absolute, by image id, of all images of ``found``.
        found: the images in their order; those without a box are counted, not listed.
        categories: of the classes, in their order.

    Returns:
        what was written.
    """
    found = list(found)
    kept = [one for one in found if one.boxes]
    root = common_folder([file_names[one.image_id] for one in kept] or file_names.values())
    annotations = []
    for one in kept:
        for index, box, score in one.boxes:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": one.image_id,
                    "category_id": categories[index]["id"],
                    "bbox": list(box),
                    "score": score,
                    "area": round(box[2] * box[3], 2),
                    "iscrowd": 0,
                }
            )
    images = [
        {
            "id": one.image_id,
            "file_name": Path(os.path.relpath(file_names[one.image_id], root)).as_posix(),
            "height": one.height,
            "width": one.width,
        }
        for one in kept
    ]
    info = {
        **facts,
        "image_root": written_root(root, path),
        "labels_without_box": sum(one.without_box for one in found),
        "images_without_box": len(found) - len(kept),
    }
    content = {
        "info": info,
        "images": images,
        "categories": [dict(category) for category in categories],
        "annotations": annotations,
    }
    with atomic_write(path) as file:
        file.write((json.dumps(content) + "\n").encode())
    return content


def read_label_file(path: str | os.PathLike) -> dict[str, Any]:
    """The content of a label file of either kind, ``info.image_root`` made absolute.

    Raises:
        OVDError: unreadable, or another kind of json.
    """
    try:
        content = read_json(path)
        kind, root = content["info"]["kind"], content["info"]["image_root"]
        if kind not in (LABELS_KIND, OBJECTS_KIND):
            raise ValueError(f"its kind is {kind!r}")
        check_annotations(content, os.fspath(path), LABELS)
        content["annotations"]  # a KeyError is explained
        content["info"]["image_root"] = os.path.join(Path(path).absolute().parent, root)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise OVDError(
            f"{path} is no label file of `ovd pseudo-label` ({error}); make it with that command"
        ) from error
    return content


def common_folder(files: Iterable[str]) -> str:
    """The deepest folder that holds all ``files`` (absolute names)."""
    folders = sorted({os.path.dirname(os.path.abspath(file)) for file in files})
    return os.path.commonpath(folders) if folders else os.getcwd()


def written_root(root: str, json_file: str | os.PathLike) -> str:
    """How ``root`` is written in ``json_file``: relative where both lie in one tree and may move
    together, that is below the json's folder, the folder above it, or $DETECTRON2_DATASETS."""
    folder = os.path.dirname(os.path.abspath(json_file))
    datasets = os.environ.get("DETECTRON2_DATASETS")
    trees = [folder, os.path.dirname(folder)]
    if datasets and _below(folder, os.path.abspath(datasets)):
        trees.append(os.path.abspath(datasets))
    trees = [tree for tree in trees if tree != os.path.dirname(tree)]  # not "/"
    if any(_below(root, tree) for tree in trees):
        return Path(os.path.relpath(root, folder)).as_posix()
    return root


def _below(path: str, tree: str) -> bool:
    return os.path.commonpath([path, tree]) == tree
