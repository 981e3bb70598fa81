"""CVAT for images 1.1: one XML of all images.

Boxes are xtl, ytl, xbr, ybr in pixels, masks are polygons, whose parts share a ``group_id``. The
score is an attribute of that name. Images are numbered in the order of their names.
"""

import json
from collections.abc import Iterator
from xml.etree import ElementTree

from .detection_set import DetectedImage, DetectionSet
from .numbers import decimal
from .options import FormatOptions
from .outlines import outlines

_SCORE = {"name": "score", "mutable": False, "input_type": "text", "default_value": "",
          "values": []}  # fmt: skip


def cvat_files(found: DetectionSet, options: FormatOptions) -> Iterator[tuple[str, bytes]]:
    """``annotations.xml``, and ``labels.json`` for the raw editor of a new task's labels."""
    labels = [{"name": name, "attributes": [_SCORE]} for name in found.names]
    yield "labels.json", (json.dumps(labels, indent=2, ensure_ascii=False) + "\n").encode()
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    _add_meta(root, found)
    for number, image in enumerate(sorted(found.images, key=lambda image: image.file)):
        _add_image(root, number, image, found.names)
        options.on_image()
    ElementTree.indent(root)
    content = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    yield "annotations.xml", content + b"\n"


def _add_meta(root: ElementTree.Element, found: DetectionSet) -> None:
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    facts = {"name": "ovd_d2", "size": str(len(found.images)), "mode": "annotation"}
    for tag, text in facts.items():
        ElementTree.SubElement(task, tag).text = text
    labels = ElementTree.SubElement(task, "labels")
    for name in found.names:
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = name
        attributes = ElementTree.SubElement(label, "attributes")
        score = ElementTree.SubElement(attributes, "attribute")
        for tag, value in _SCORE.items():
            ElementTree.SubElement(score, tag).text = str(value) if value != [] else ""


def _add_image(
    root: ElementTree.Element, number: int, image: DetectedImage, names: tuple[str, ...]
) -> None:
    facts = {"id": str(number), "name": image.file, "width": str(image.width)}
    element = ElementTree.SubElement(root, "image", {**facts, "height": str(image.height)})
    for place, one in enumerate(image.objects, start=1):
        common = {
            "label": names[one.label],
            "source": "manual" if one.score is None else "auto",
            "occluded": "0",
            "z_order": "0",
        }
        shapes = []
        if one.mask is None:
            corners = zip(("xtl", "ytl", "xbr", "ybr"), map(decimal, one.box))
            shapes.append(("box", {**common, **dict(corners)}))
        else:
            polygons = outlines(image, one)
            if len(polygons) > 1:
                common["group_id"] = str(place)
            for polygon in polygons:
                points = ";".join(f"{decimal(x)},{decimal(y)}" for x, y in polygon.tolist())
                shapes.append(("polygon", {**common, "points": points}))
        for tag, values in shapes:
            shape = ElementTree.SubElement(element, tag, values)
            if one.score is not None:
                score = ElementTree.SubElement(shape, "attribute", {"name": "score"})
                score.text = decimal(one.score, 6)
