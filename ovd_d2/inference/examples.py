"""Visual examples of classes: boxes on pictures, given in Python or in a json file.

A file says, with image paths as seen from its folder and boxes x0, y0, x1, y1 in pixels::

    {"my mug": [{"image": "a.jpg", "box": [10, 20, 90, 120]}, ...], "cat": null}

null is a class by its word. A COCO json will do as well: each annotation is an example of its
category, and a category without any is a class by its word.

Letters: H, W height and width of a picture, R boxes.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovd_d2.data.datasets.annotation_check import check_annotations
from ovd_d2.data.datasets.findings import short
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import is_special_file
from ovd_d2.files.images import Picture
from ovd_d2.language import Vocabulary

MAX_BYTES = 64 << 20  # of a json
_LONGEST_PATH = 4095
_TOLERANCE = 1.0  # pixels that a box may reach beyond the border: label tools round
_COCO_LISTS = ("images", "annotations", "categories")
FORM = '{"my mug": [{"image": "a.jpg", "box": [x0, y0, x1, y1]}, ...], "cat": null}'


@dataclass(frozen=True)
class Example:
    """A box on a picture.

    Attributes:
        image: a file, PIL image, array or tensor.
        box: x0, y0, x1, y1, absolute, in the pixels of the picture as a viewer shows it (after
            EXIF); finite, x0 < x1 and y0 < y1.
    """

    image: Picture
    box: tuple[float, float, float, float]

    @property
    def source(self) -> str:
        """What messages call the picture."""
        if isinstance(self.image, str | os.PathLike):
            return os.fspath(self.image)
        return f"a {type(self.image).__name__}"


Examples = dict[str, tuple[Example, ...]]
"""Class name -> its examples; (): a class by its word."""
ExamplesLike = Mapping[str, Sequence[tuple[Picture, Sequence[float]]] | None]


def as_examples(value: ExamplesLike) -> Examples:
    """Checks classes by examples, as far as that goes without opening a picture.

    Args:
        value: class name -> list of (picture, box), or None for a class by its word.

    Raises:
        OVDError: naming the class, the picture and what is wrong.
    """
    if not isinstance(value, Mapping):
        raise OVDError(f"Examples are a mapping of class names, not a {type(value).__name__}.")
    Vocabulary.from_names(list(value))  # raises for a name that is none
    found: Examples = {}
    for name, given in value.items():
        if given is None or given == ():
            found[name] = ()
            continue
        if isinstance(given, str | bytes) or not isinstance(given, Sequence) or not given:
            raise OVDError(
                f"Class {short(name)}: give a list of (picture, box), or None for its word alone, "
                f"not {short(given)}."
            )
        found[name] = tuple(_example(name, entry) for entry in given)
    return {name.strip(): examples for name, examples in found.items()}


def _example(name: str, entry: Any) -> Example:
    if isinstance(entry, Example):
        entry = (entry.image, entry.box)
    if isinstance(entry, str | bytes) or not isinstance(entry, Sequence) or len(entry) != 2:
        raise OVDError(
            f"Class {short(name)}: an example is a pair of picture and box, not {short(entry)}."
        )
    image, box = entry
    example = Example(image, (0.0, 0.0, 0.0, 0.0))
    try:
        numbers = tuple(_number(x) for x in box)
    except (TypeError, ValueError, OverflowError):
        numbers = ()
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise OVDError(
            f"Class {short(name)}: the box on {example.source} is {short(box)}; give four finite "
            "numbers x0, y0, x1, y1 in pixels."
        )
    if not (numbers[0] < numbers[2] and numbers[1] < numbers[3]):
        raise OVDError(
            f"Class {short(name)}: the box {_box(numbers)} on {example.source} has no area; give "
            "x0, y0, x1, y1 with x0 < x1 and y0 < y1."
        )
    return Example(image, numbers)


def _number(value: Any) -> float:
    if isinstance(value, bool | str | bytes):
        raise TypeError
    return float(value)


def boxes_inside(examples: Sequence[tuple[str, Example]], height: int, width: int) -> Tensor:
    """(R, 4) fp32 boxes of examples of one picture, cut at its border.

    Args:
        examples: R of (class name, example).
        height: H.
        width: W.

    Raises:
        OVDError: a box reaches more than a pixel beyond the border, or lies beyond it.
    """
    for name, example in examples:
        x0, y0, x1, y1 = example.box
        beyond = max(-x0, -y0, x1 - width, y1 - height)
        if beyond > _TOLERANCE or min(x1, y1, width - x0, height - y0) <= 0:
            raise OVDError(
                f"Class {short(name)}: the box {_box(example.box)} is not inside of "
                f"{example.source}, which has {width} x {height} pixels (width x height, turned as "
                "its EXIF data say)."
            )
    boxes = torch.tensor([example.box for _, example in examples], dtype=torch.float32)
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def read_examples(path: str | os.PathLike) -> Examples:
    """Examples from a json file, see the top of this file; no picture is opened.

    Raises:
        OVDError: naming the file and what is wrong with it.
    """
    path = Path(path)
    content = _read_json(path)
    try:
        if isinstance(content, dict) and all(isinstance(content.get(k), list) for k in _COCO_LISTS):
            return _from_coco(content, path)
        if not isinstance(content, dict) or not content:
            raise OVDError(f"write {FORM}.")
        return as_examples({name: _entries(name, v, path) for name, v in content.items()})
    except OVDError as error:
        raise OVDError(f"{path}: {error}") from error


def _read_json(path: Path) -> Any:
    try:
        if is_special_file(path):
            raise OVDError(f"{path} is no plain file but a pipe or a device: give a file.")
        if os.path.getsize(path) > MAX_BYTES:
            raise OVDError(
                f"{path} has {os.path.getsize(path)} bytes, a file of examples at most {MAX_BYTES}."
            )
        with open(path, "rb") as file:
            return json.loads(file.read(), object_pairs_hook=_distinct)
    except OSError as error:
        raise OVDError(f"Cannot read the examples {path}: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise OVDError(f"The examples {path} are no valid json ({reason}).") from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The mapping of these pairs; of two that have the same name, json would keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the name {short(twice)} occurs twice in one mapping")
    return found


def _entries(name: str, value: Any, path: Path) -> list[tuple[Path, Any]] | None:
    """The examples of a class in our own form."""
    if value is None:
        return None
    if not isinstance(value, list):
        raise OVDError(f"class {short(name)} is {short(value)}; write {FORM}.")
    for entry in value:
        is_example = isinstance(entry, dict) and set(entry) == {"image", "box"}
        image = entry["image"] if is_example else ""
        if not isinstance(image, str) or not 0 < len(image) <= _LONGEST_PATH:
            raise OVDError(f"class {short(name)} has {short(entry)}; write {FORM}.")
    return [(path.parent / entry["image"], entry["box"]) for entry in value]


def _from_coco(content: dict[str, Any], path: Path) -> Examples:
    """Each annotation that is no crowd is an example of its category."""
    try:
        check_annotations(content, os.fspath(path))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise OVDError(f"it is not in COCO's format ({error}).") from error
    images = {image["id"]: path.parent / image["file_name"] for image in content["images"]}
    categories = sorted(content["categories"], key=lambda category: category["id"])
    found: dict[Any, list[tuple[Path, list[float]]]] = {c["id"]: [] for c in categories}
    for entry in content["annotations"]:
        if not entry.get("iscrowd"):
            x, y, width, height = entry["bbox"]
            pair = (images[entry["image_id"]], [x, y, x + width, y + height])
            found[entry["category_id"]].append(pair)
    names = [category["name"] for category in categories]
    if len(set(names)) < len(names):
        raise OVDError("two categories have the same name; names must be distinct.")
    return as_examples({c["name"]: found[c["id"]] or None for c in categories})


def _box(numbers: Sequence[float]) -> str:
    return f"({', '.join(f'{x:g}' for x in numbers)})"
