"""From labels as they were written to COCO content that can be used, every image opened once."""

import math
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ovd_d2.errors import OVDError
from ovd_d2.files.images import UnreadableImageError, read_image

from .labels import Labels, RawBox, RawImage, Remarks

_SMALLEST = 1.0  # pixels: a side below that is no box
_BEYOND = 1.0  # pixels by which a box may reach out of its image without a word


@dataclass
class Checked:
    """Labelled images of which every one can be used.

    Attributes:
        root: folder that all images are below.
        names: classes, in order; all that the source declares or has boxes of.
        images: COCO's, ids from 1, file names relative to ``root``.
        annotations: COCO's, category ids from 1, in the order of ``names``.
        remarks: what was left out, of the reader too.
    """

    root: Path
    names: list[str]
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    remarks: Remarks = field(default_factory=Remarks)

    def paths(self) -> set[Path]:
        """Of the images."""
        return {self.root / image["file_name"] for image in self.images}

    def of_images(self, ids: Collection[int]) -> "Checked":
        """The part of the images ``ids``."""
        wanted = set(ids)
        return Checked(
            self.root, self.names, [i for i in self.images if i["id"] in wanted],
            [a for a in self.annotations if a["image_id"] in wanted],
        )  # fmt: skip

    def counts(self) -> dict[str, tuple[int, int]]:
        """Per class how many boxes there are, and in how many images."""
        boxes = dict.fromkeys(self.names, 0)
        images: dict[str, set[int]] = {name: set() for name in self.names}
        for annotation in self.annotations:
            name = self.names[annotation["category_id"] - 1]
            boxes[name] += 1
            images[name].add(annotation["image_id"])
        return {name: (boxes[name], len(images[name])) for name in self.names}

    def content(self, names: list[str]) -> dict[str, Any]:
        """A COCO json whose categories are ``names``; boxes of others are not in it."""
        numbers = {name: number for number, name in enumerate(names, start=1)}
        annotations = [
            {**annotation, "category_id": numbers[name]}
            for annotation in self.annotations
            if (name := self.names[annotation["category_id"] - 1]) in numbers
        ]
        categories = [{"id": number, "name": name} for name, number in numbers.items()]
        return {"images": self.images, "categories": categories, "annotations": annotations}


def check_labels(labels: Labels, *, on_image: Callable[[], Any] = lambda: None) -> Checked:
    """Opens every image and keeps what can be used.

    Left out, each with a remark: images that are missing, listed twice, unreadable, or of another
    size than the labels say; boxes that are no numbers, without area, outside of their image, or
    there twice. Boxes that reach out of their image are cut.

    Args:
        labels: of a reader.
        on_image: called after each image.

    Raises:
        OVDError: no image is left, or no box.
    """
    remarks = Remarks()
    remarks.add(labels.remarks)
    names = dict.fromkeys(name for name in labels.names if name)
    kept: list[tuple[Path, int, int, list[tuple[RawBox, list[float]]]]] = []
    seen: set[str] = set()
    for image in labels.images:
        size = _size(image, seen, remarks)
        on_image()
        if size is None:
            continue
        boxes = _boxes(image, *size, labels.relative, remarks)
        names.update(dict.fromkeys(box.name for box, _ in boxes))
        kept.append((Path(os.path.abspath(image.path)), *size, boxes))
    if not any(boxes for *_, boxes in kept):
        said = "; ".join(remarks.lines()) or "it lists none"
        raise OVDError(f"{labels.source} has no image with a box that can be used ({said}).")
    _note_equal_names(list(names), remarks)
    return _collected(kept, list(names), remarks)


def _size(image: RawImage, seen: set[str], remarks: Remarks) -> tuple[int, int] | None:
    """(width, height) of an image that can be used, as a viewer shows it."""
    path = str(image.path)
    real = os.path.realpath(path)
    if real in seen:
        remarks.left_out("images are listed twice, the second is not used", path)
        return None
    seen.add(real)
    try:
        height, width = read_image(path).shape[:2]
    except UnreadableImageError as error:
        missing = not os.path.exists(path)
        reason = "images are missing" if missing else "images cannot be read"
        remarks.left_out(reason, path if missing else f"{path} ({error.reason})")
        return None
    if image.size is not None and image.size != (width, height):
        said = "{} x {}".format(*image.size)
        where = f"{path} (labels say {said}, it is {width} x {height})"
        remarks.left_out("images have another size than their labels say", where)
        return None
    return width, height


def _boxes(
    image: RawImage, width: int, height: int, relative: bool, remarks: Remarks
) -> list[tuple[RawBox, list[float]]]:
    """The good boxes of an image with x, y, width, height in pixels inside of it."""
    found, seen = [], set()
    for raw in image.boxes:
        scale = (width, height, width, height) if relative else (1, 1, 1, 1)
        x, y, w, h = (value * factor for value, factor in zip(raw.box, scale))
        x0, y0, x1, y1 = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
        if not all(map(math.isfinite, (x, y, w, h))):
            remarks.left_out("boxes are not made of numbers", raw.where)
        elif w < _SMALLEST or h < _SMALLEST:
            remarks.left_out("boxes have no area (a side below one pixel)", raw.where)
        elif x1 - x0 < _SMALLEST or y1 - y0 < _SMALLEST:
            remarks.left_out("boxes are outside of their image", raw.where)
        elif (raw.name, raw.box) in seen:
            remarks.left_out("boxes are there twice", raw.where)
        else:
            seen.add((raw.name, raw.box))
            if max(x0 - x, y0 - y, x + w - x1, y + h - y1) > _BEYOND:
                remarks.note("boxes reach out of their image and were cut", raw.where)
            found.append((raw, [round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)]))
    return found


def _note_equal_names(names: list[str], remarks: Remarks) -> None:
    by_word: dict[str, list[str]] = {}
    for name in names:
        by_word.setdefault(" ".join(name.casefold().replace("_", " ").split()), []).append(name)
    for found in by_word.values():
        if len(found) > 1:
            remarks.note("class names hardly differ", " and ".join(map(repr, found)))


def _collected(
    kept: list[tuple[Path, int, int, list[tuple[RawBox, list[float]]]]],
    names: list[str],
    remarks: Remarks,
) -> Checked:
    root = Path(os.path.commonpath([path.parent for path, *_ in kept]))
    numbers = {name: number for number, name in enumerate(names, start=1)}
    images, annotations = [], []
    for image_id, (path, width, height, boxes) in enumerate(kept, start=1):
        name = path.relative_to(root).as_posix()
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        if not boxes:
            remarks.note("images have no box", str(path))
        for raw, box in boxes:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": numbers[raw.name],
                    "bbox": box,
                    "area": round(box[2] * box[3], 2),
                    "iscrowd": int(raw.crowd),
                }
            )
    return Checked(root, names, images, annotations, remarks)
