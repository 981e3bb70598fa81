"""Pascal VOC: an XML per image.

Pixels count from 1, so that a box from 0 to 10 is written as 1 to 10: the upper left corner is
moved by one, as Detectron2's loader undoes it. Fractions are kept. There are no masks.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath
from xml.etree import ElementTree

from .detection_set import DetectedImage, DetectedObject, DetectionSet
from .numbers import decimal
from .options import FormatOptions


def voc_files(found: DetectionSet, options: FormatOptions) -> Iterator[tuple[str, bytes]]:
    """``Annotations/NAME.xml`` of every image and their names in ``ImageSets/Main/train.txt``. A
    score is the object's ``confidence``, which readers of VOC pass over if they do not know it."""
    listed = "".join(f"{image.stem}\n" for image in found.images)
    yield "ImageSets/Main/train.txt", listed.encode()
    for image in found.images:
        root = _annotation(image, found.names)
        ElementTree.indent(root)
        content = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
        yield f"Annotations/{image.stem}.xml", content + b"\n"
        options.on_image()


def _annotation(image: DetectedImage, names: tuple[str, ...]) -> ElementTree.Element:
    root = ElementTree.Element("annotation")
    path = PurePosixPath(image.file)
    _add(root, "folder", "" if path.parent == PurePosixPath(".") else path.parent.as_posix())
    _add(root, "filename", path.name)
    _add(_add(root, "source"), "database", "ovd_d2")
    size = _add(root, "size")
    for tag, value in (("width", image.width), ("height", image.height), ("depth", 3)):
        _add(size, tag, str(value))
    _add(root, "segmented", "0")
    for one in image.objects:
        _add_object(root, one, names[one.label])
    return root


def _add_object(root: ElementTree.Element, one: DetectedObject, name: str) -> None:
    x0, y0, x1, y1 = one.box
    found = _add(root, "object")
    _add(found, "name", name)
    _add(found, "pose", "Unspecified")
    _add(found, "truncated", "0")
    _add(found, "difficult", "0")
    box = _add(found, "bndbox")
    # Of boxes below a pixel the corners would change places.
    values = {"xmin": x0 + 1, "ymin": y0 + 1, "xmax": max(x1, x0 + 1), "ymax": max(y1, y0 + 1)}
    for tag, value in values.items():
        _add(box, tag, decimal(value))
    if one.score is not None:
        _add(found, "confidence", decimal(one.score, 6))


def _add(parent: ElementTree.Element, tag: str, text: str = "") -> ElementTree.Element:
    child = ElementTree.SubElement(parent, tag)
    child.text = text
    return child
