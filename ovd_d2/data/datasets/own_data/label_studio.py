"""Exports of Label Studio: "JSON" (tasks with annotations) and "JSON-MIN" (a row per task).

Boxes are in percent of the image. Of several annotations of a task the last one that was not
cancelled counts; of polygons and turned rectangles, the upright box around them.
"""

import math
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

from ovd_d2.errors import OVDError
from ovd_d2.files.images import SUFFIXES

from .labels import Labels, RawBox, RawImage, class_name, hull, list_images, to_floats

_SHAPES = ("rectanglelabels", "polygonlabels")
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the names of uploads


def looks_like_label_studio(content: Any) -> bool:
    """Whether a json is a list of tasks with images."""
    return isinstance(content, list) and any(_image_of(task) for task in content)


def read_label_studio(content: Any, file: Path, images: Path | None = None) -> Labels:
    """The labels of an export.

    Args:
        content: of the file.
        file: for messages, and to look for the images beside it.
        images: their folder; None: that of ``file``.

    Raises:
        OVDError: it is none.
    """
    if not looks_like_label_studio(content):
        raise OVDError(
            f"{file} is no export of Label Studio: it must be a list of tasks of images."
        )
    labels = Labels(str(file), relative=True)
    folder = images or file.parent
    by_name: dict[str, Path] = {}
    for path in list_images(folder):
        by_name.setdefault(path.name, path)
    for number, task in enumerate(content, start=1):
        where = f"task {task.get('id', number) if isinstance(task, dict) else number}"
        address = _image_of(task)
        if not address:
            labels.remarks.left_out("tasks have no image", where)
            continue
        results = _results(task)
        if results is None:
            reason = "tasks have no annotation and are taken as not labelled"
            labels.remarks.note(reason, where)
            continue
        image = RawImage(_find(address, folder, by_name))
        for place, result in enumerate(results, start=1):
            _add_box(result, f"{where} result {place}", image, labels)
        labels.images.append(image)
    return labels


def _image_of(task: Any) -> str:
    """Address of a task's image; "" if it has none."""
    data = task.get("data", task) if isinstance(task, dict) else None
    if not isinstance(data, dict):
        return ""
    texts = [data.get("image"), *data.values()]
    for text in texts:
        if isinstance(text, str) and "\0" not in text:
            with_suffix = _file_name(text).lower().endswith(SUFFIXES)
            if with_suffix or text is data.get("image"):
                return text
    return ""


def _file_name(address: str) -> str:
    """Path of an image in an address: of a web address, of ``/data/local-files/?d=``, or itself."""
    try:
        parts = urlparse(address)
    except ValueError:
        return address
    local = parse_qs(parts.query).get("d")
    return local[0] if local else unquote(parts.path) or address


def _find(address: str, folder: Path, by_name: dict[str, Path]) -> Path:
    path = _file_name(address).lstrip("/")
    name = Path(path).name
    for key in (name, _UPLOADED.sub("", name)):
        if key in by_name:
            below = [p for p in (folder / path,) if p.is_file()]
            return (below or [by_name[key]])[0]
    return folder / (name or "image")


def _results(task: dict[str, Any]) -> list[Any] | None:
    """What was drawn; None for a task that nobody has finished."""
    if "annotations" not in task and "completions" not in task:  # JSON-MIN
        shapes = [v for v in task.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
        return [shape for found in shapes for shape in found] or None
    annotations = task.get("annotations") or task.get("completions") or []
    done = [
        one["result"]
        for one in (annotations if isinstance(annotations, list) else [])
        if isinstance(one, dict)
        and isinstance(one.get("result"), list)
        and not one.get("was_cancelled")
    ]
    return done[-1] if done else None


def _add_box(result: Any, where: str, image: RawImage, labels: Labels) -> None:
    value = result.get("value", result) if isinstance(result, dict) else None
    value = value if isinstance(value, dict) else {}
    kind = next((shape for shape in _SHAPES if shape in value), None)
    if kind is None:
        labels.remarks.left_out("results are neither rectangles nor polygons with labels", where)
        return
    chosen = value[kind] if isinstance(value[kind], list) else []
    names = [name for name in map(class_name, chosen) if name]
    if not names:
        labels.remarks.left_out("boxes have no class name", where)
        return
    box = _rectangle(value, result) if kind == _SHAPES[0] else _polygon(value.get("points"))
    # Percent of the image become parts of it.
    parts = tuple(side / 100 for side in box)
    image.boxes += [RawBox(name, parts, where) for name in names]


def _rectangle(value: dict[str, Any], result: dict[str, Any]) -> tuple[float, float, float, float]:
    x, y, width, height = to_floats(value.get(k) for k in ("x", "y", "width", "height"))
    (angle,) = to_floats([value.get("rotation", 0)])
    if not angle or angle != angle:
        return x, y, width, height
    # It was turned about its upper left corner, in pixels, not in percent.
    sizes = [result.get(k, value.get(k)) for k in ("original_width", "original_height")]
    wide, high = (side if side > 0 else 1.0 for side in to_floats(sizes))
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    points: list[float] = []
    for dx, dy in ((0, 0), (width, 0), (0, height), (width, height)):
        right, down = dx * wide, dy * high
        points += [x + (right * cos - down * sin) / wide, y + (right * sin + down * cos) / high]
    return hull(points)


def _polygon(points: Any) -> tuple[float, float, float, float]:
    """The box around points; nan for what is no polygon."""
    flat: list[float] = []
    for point in points if isinstance(points, list) else ():
        pair = point if isinstance(point, list | tuple) and len(point) == 2 else (None, None)
        flat += to_floats(pair)
    return hull(flat) if flat and all(v == v for v in flat) else (math.nan,) * 4
