"""Reads detections: COCO's and LVIS's annotations and results, predictions.json of `ovd predict`
and label files of `ovd pseudo-label`."""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovd_d2.data.datasets.annotation_check import FileKind, check_annotations
from ovd_d2.data.datasets.annotation_files import read_json, uncollected
from ovd_d2.data.datasets.findings import is_number
from ovd_d2.data.datasets.record_check import checked_results
from ovd_d2.errors import OVDError

from .detection_set import DetectedImage, DetectedObject, DetectionSet, below_common_folder
from .phrases import has_phrases, phrases_as_classes

_PREFIXES = ("labels:", "grounding:")  # of label files, as DATASETS.TRAIN names them
_KIND = FileKind(image_field="", with_ids=False, boxes_optional=True, for_training=False)
_REMEDY = (
    "give predictions.json of `ovd predict`, a label file of `ovd pseudo-label`, or COCO's "
    "annotations or results"
)
NO_AREA = "have no box with an area in their image"
CROWD = "are crowds"


def read_detections(
    path: str | os.PathLike,
    *,
    annotations: str | os.PathLike | None = None,
    image_root: str | os.PathLike | None = None,
) -> DetectionSet:
    """The detections or annotations of a json.

    Args:
        path: a json of images, categories and annotations, "labels:" and a label file, or a list
            of results. Of grounded captions the phrases become the classes.
        annotations: of a list of results: the json that says which images and classes they are of.
        image_root: the folder that the json's file names count from; None: that of
            ``info.image_root``, else the current one.

    Raises:
        OVDError: naming the file and what is wrong with it.
    """
    path = os.fspath(path)
    for prefix in _PREFIXES:
        path = os.path.expanduser(path.removeprefix(prefix))
    content = _read(path)
    if isinstance(content, list):
        content = _of_results(path, content, annotations)
    elif annotations is not None:
        raise OVDError(
            f"--annotations is for lists of results; {path} has images and classes of its own: "
            "leave it out."
        )
    _check(path, content)
    if image_root is None:
        image_root = _written_root(path, content.get("info"))
    try:
        if has_phrases(content):
            content = phrases_as_classes(content)
        return from_coco(content, image_root)
    except OVDError as error:
        raise OVDError(f"{path}: {error}") from error


def from_coco(content: Mapping[str, Any], image_root: str | os.PathLike = "") -> DetectionSet:
    """The same of the content of a json that is known to be in order.

    Args:
        content: images, categories, annotations and, if there, info.
        image_root: the folder that file names count from.
    """
    label_of = {category["id"]: k for k, category in enumerate(content["categories"])}
    images = {image["id"]: image for image in content["images"]}
    objects: dict[Any, list[DetectedObject]] = {image_id: [] for image_id in images}
    left_out: Counter[str] = Counter()
    for row in content["annotations"]:
        if row.get("iscrowd"):
            left_out[CROWD] += 1
            continue
        box = _box_inside(row.get("bbox"), images[row["image_id"]])
        if box is None:
            left_out[NO_AREA] += 1
            continue
        label, mask = label_of[row["category_id"]], row.get("segmentation") or None
        found = DetectedObject(label, box, _score(row), mask)
        objects[row["image_id"]].append(found)
    sources = [os.path.join(image_root, _file_name(image)) for image in images.values()]
    return DetectionSet(
        tuple(category["name"] for category in content["categories"]),
        tuple(label_of),
        tuple(
            DetectedImage(
                image["id"],
                file,
                Path(source),
                image["width"],
                image["height"],
                tuple(objects[image["id"]]),
            )  # fmt: skip
            for image, file, source in zip(images.values(), below_common_folder(sources), sources)
        ),
        content.get("info") or {},
        left_out,
    )


def _read(path: str) -> Any:
    try:
        with uncollected():
            return read_json(path)
    except OVDError:
        raise
    except (OSError, ValueError) as error:
        raise OVDError(f"{path} cannot be read ({_reason(error)}): {_REMEDY}.") from error


def _check(path: str, content: Any) -> None:
    try:
        check_annotations(content, path, _KIND)
        content["annotations"]  # a KeyError is explained
    except OVDError:
        raise
    except KeyError as error:
        raise OVDError(f"{path} lacks the entry {error}: {_REMEDY}.") from error
    except (TypeError, ValueError) as error:
        raise OVDError(f"{path} holds no detections ({error}): {_REMEDY}.") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _written_root(path: str, info: Any) -> str:
    """The folder of the images that a label file names, "" if there is none."""
    root = info.get("image_root") if isinstance(info, dict) else None
    if not isinstance(root, str):
        return ""
    return os.path.join(os.path.dirname(os.path.abspath(path)), os.path.expanduser(root))


def _of_results(path: str, results: list, annotations: str | os.PathLike | None) -> dict[str, Any]:
    """A list of results as annotations of the images and classes that they are of."""
    if annotations is None:
        raise OVDError(
            f"{path} is a list of results, which names no images and classes: add --annotations "
            "FILE, the json they were made for."
        )
    content = _read(os.fspath(annotations))
    _check(
        os.fspath(annotations),
        {"annotations": [], **content} if isinstance(content, dict) else content,
    )
    ids = {category["id"] for category in content["categories"]}
    results = checked_results(results, path, scored=False, category_ids=ids)
    kept = [row for row in results if row["category_id"] in ids]
    return {**content, "annotations": kept}


def _file_name(image: Mapping[str, Any]) -> str:
    """LVIS gives a URL, whose last two parts are folder and file."""
    name = image.get("file_name") or "/".join(str(image.get("coco_url", "")).split("/")[-2:])
    if not isinstance(name, str) or not name or "\0" in name:
        raise OVDError(f"image {image['id']!r} has no file_name; add it.")
    return name


def _score(row: Mapping[str, Any]) -> float | None:
    score = row.get("score")
    if score is None:
        return None
    if not is_number(score) or not 0 <= score <= 1:
        raise OVDError(f"a box of image {row['image_id']!r} has the score {score!r}; give 0..1.")
    return float(score)


def _box_inside(
    xywh: list[float] | None, image: Mapping[str, Any]
) -> tuple[float, float, float, float] | None:
    """x0, y0, x1, y1 of what lies in the image; None if that has no area."""
    if xywh is None:
        return None
    x, y, width, height = xywh
    x0, x1 = max(x, 0.0), min(x + width, image["width"])
    y0, y1 = max(y, 0.0), min(y + height, image["height"])
    return (float(x0), float(y0), float(x1), float(y1)) if x0 < x1 and y0 < y1 else None
