"""Label Studio: a json of tasks with predictions, and the labelling configuration they belong to.

Coordinates are percent of the image's width and height. Masks are polygons, one region for each
part. What has scores is a prediction, what has none an annotation.
"""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from .detection_set import DetectedImage, DetectedObject, DetectionSet
from .options import FormatOptions
from .outlines import outlines

# type of a region -> name of its control in the configuration
_CONTROLS = {"rectanglelabels": "box", "polygonlabels": "polygon"}
_TAGS = {"box": "RectangleLabels", "polygon": "PolygonLabels"}


def label_studio_files(found: DetectionSet, options: FormatOptions) -> Iterator[tuple[str, bytes]]:
    """``tasks.json`` to import and ``label_config.xml`` for the project's settings."""
    yield "label_config.xml", _configuration(found)
    model = str(found.info.get("model") or found.info.get("detector") or "ovd_d2")
    tasks = []
    for image in found.images:
        tasks.append(_task(image, found.names, model, options.image_url))
        options.on_image()
    yield "tasks.json", (json.dumps(tasks, indent=1, ensure_ascii=False) + "\n").encode()


def _configuration(found: DetectionSet) -> bytes:
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", {"name": "image", "value": "$image"})
    for control in _TAGS if found.has_masks else ("box",):
        names = {"name": control, "toName": "image"}
        labels = ElementTree.SubElement(view, _TAGS[control], names)
        for name in found.names:
            ElementTree.SubElement(labels, "Label", {"value": name})
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="utf-8") + b"\n"


def _task(
    image: DetectedImage, names: tuple[str, ...], model: str, image_url: str
) -> dict[str, Any]:
    guessed = [one for one in image.objects if one.score is not None]
    known = [one for one in image.objects if one.score is None]
    task: dict[str, Any] = {"data": {"image": image_url + quote(image.file)}}
    if guessed or not known:
        scores = [one.score for one in guessed]
        task["predictions"] = [
            {
                "model_version": model,
                "score": sum(scores) / len(scores) if scores else 0.0,
                "result": _regions(image, guessed, names),
            }
        ]
    if known:
        task["annotations"] = [{"result": _regions(image, known, names)}]
    return task


def _regions(
    image: DetectedImage, objects: list[DetectedObject], names: tuple[str, ...]
) -> list[dict[str, Any]]:
    regions = []
    for one in objects:
        for kind, value in _shapes(image, one):
            region = {
                "id": f"object-{len(regions) + 1}",
                "type": kind,
                "from_name": _CONTROLS[kind],
                "to_name": "image",
                "original_width": image.width,
                "original_height": image.height,
                "image_rotation": 0,
                "value": {**value, kind: [names[one.label]]},
            }
            if one.score is not None:
                region["score"] = one.score
            regions.append(region)
    return regions


def _shapes(image: DetectedImage, one: DetectedObject) -> list[tuple[str, dict[str, Any]]]:
    to_percent = (100 / image.width, 100 / image.height)
    if one.mask is not None:
        polygons = outlines(image, one)
        return [("polygonlabels", {"points": (p * to_percent).tolist()}) for p in polygons]
    x0, y0, x1, y1 = one.box
    box = {
        "x": x0 * to_percent[0],
        "y": y0 * to_percent[1],
        "width": (x1 - x0) * to_percent[0],
        "height": (y1 - y0) * to_percent[1],
        "rotation": 0,
    }
    return [("rectanglelabels", box)]
