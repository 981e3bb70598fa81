"""Flickr30k Entities: phrases of captions with their boxes (Plummer et al. 2015).

An image has five sentences, in Sentences/ID.txt one a line with its phrases marked
``[/EN#283585/people/clothing A young girl]``: the entity, its types, the words. The boxes of the
entities are in Annotations/ID.xml; an ``<object>`` belongs to every entity that it ``<name>``s.
"""

import os
import re
from collections import defaultdict
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.data.datasets.annotation_files import check_records
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import is_special_file

README_SECTION = "Flickr30k Entities"

_PHRASE = re.compile(r"\[/EN#(?P<entity>[^/\s\]]+)/(?P<types>\S*) (?P<words>[^\[\]]*)\]")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def load_flickr30k_entities(
    split_file: str, annotations_root: str, image_root: str
) -> list[dict[str, Any]]:
    """One record for each sentence that has a phrase with boxes.

    Args:
        split_file: the ids of the split's images, one a line.
        annotations_root: the folder that holds Annotations/ and Sentences/.
        image_root: the folder of ID.jpg.

    Returns:
        Dicts with ``file_name``, ``height``, ``width`` (pixels), ``image_id`` (int),
        ``sentence_id`` (its place among the image's sentences, from 0), ``caption`` (words joined
        by single spaces) and ``phrases``. These are dicts, in the order of the caption, with
        ``spans`` (one pair [begin, end) of characters of the caption), ``types`` (list of str),
        ``entity`` (str) and ``boxes`` (list of x0, y0, x1, y1 in pixels, all of the entity, at
        least one). Phrases without boxes are left out.

    Raises:
        OVDError: a file is missing or broken; it is named.
    """
    records = []
    for image_id in _read(split_file).split():
        if not image_id.isdecimal():
            raise OVDError(f"{split_file} names the image {image_id!r}: give ids, one a line.")
        path = os.path.join(annotations_root, "Annotations", f"{image_id}.xml")
        boxes, height, width = parse_annotation(_read(path), path)
        path = os.path.join(annotations_root, "Sentences", f"{image_id}.txt")
        for sentence_id, (caption, phrases) in enumerate(parse_sentences(_read(path), path)):
            phrases = [{**p, "boxes": boxes[p["entity"]]} for p in phrases if p["entity"] in boxes]
            if phrases:
                records.append(
                    {
                        "file_name": os.path.join(image_root, f"{image_id}.jpg"),
                        "height": height,
                        "width": width,
                        "image_id": int(image_id),
                        "sentence_id": sentence_id,
                        "caption": caption,
                        "phrases": phrases,
                    }
                )
    check_records(records, split_file, README_SECTION)
    return records


def parse_annotation(content: str, path: str) -> tuple[dict[str, list[list[int]]], int, int]:
    """The boxes of an image's entities.

    Args:
        content: of Annotations/ID.xml.
        path: the file, for messages.

    Returns:
        Entity -> its boxes (x0, y0, x1, y1 as they stand in the file) in its order; height; width.
        Entities without boxes (scenes, what is not visible) are no keys.

    Raises:
        OVDError: it is no such xml, or has a document type: that could define entities which
            expand without end.
    """
    try:
        root = _parse_xml(content, path)
        boxes = defaultdict(list)
        for element in root.iter("object"):
            frame = element.find("bndbox")
            if frame is None:
                continue
            box = [int(frame.findtext(corner)) for corner in _CORNERS]
            for name in element.iter("name"):
                boxes[name.text].append(box)
        size = root.find("size")
        return dict(boxes), int(size.findtext("height")), int(size.findtext("width"))
    except (expat.ExpatError, AttributeError, TypeError, ValueError) as error:
        if isinstance(error, OVDError):
            raise
        raise OVDError(
            f"{path} is no annotation of Flickr30k Entities ({error}): get the file anew, see "
            f"section '{README_SECTION}' of datasets/README.md."
        ) from error


def _parse_xml(content: str, path: str) -> ElementTree.Element:
    def refuse(*_: Any) -> None:
        raise OVDError(f"{path} has a document type (DOCTYPE), which is not read: remove it.")

    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.Parse(content, True)
    return builder.close()


def parse_sentences(content: str, path: str) -> list[tuple[str, list[dict[str, Any]]]]:
    """The captions of an image and the phrases in them.

    Args:
        content: of Sentences/ID.txt.
        path: the file, for messages.

    Returns:
        For each line that is not empty the caption and its phrases, dicts with ``spans``, ``types``
        and ``entity``.

    Raises:
        OVDError: the brackets of a line do not form phrases.
    """
    return [_parse_sentence(line, path) for line in content.splitlines() if line.strip()]


def _parse_sentence(line: str, path: str) -> tuple[str, list[dict[str, Any]]]:
    caption, phrases, end = "", [], 0
    line = " ".join(line.split())
    for match in _PHRASE.finditer(line):
        caption += line[end : match.start()]
        span = (len(caption), len(caption) + len(match["words"]))
        caption += match["words"]
        end = match.end()
        phrases.append(
            {"spans": [span], "types": match["types"].split("/"), "entity": match["entity"]}
        )
    caption += line[end:]
    if "/EN#" in caption:
        raise OVDError(
            f"{path} has a sentence with a phrase that is not marked as [/EN#entity/types words]: "
            f"{line[:60]!r}; get the file anew."
        )
    return caption, phrases


def _read(path: str) -> str:
    if is_special_file(path):
        raise OVDError(f"{path} is no plain file but a pipe or a device: give a file.")
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise OVDError(f"{path} is no UTF-8 text ({error}): get the file anew.") from error
    except OSError as error:
        raise OVDError(
            f"{path} cannot be read ({error.strerror}): prepare the data set as section "
            f"'{README_SECTION}' of datasets/README.md says."
        ) from error


def register_flickr30k_entities(
    name: str, split_file: str, annotations_root: str, image_root: str
) -> None:
    """Registers a split for the evaluation of phrase grounding; reads no file."""
    DatasetCatalog.register(
        name, lambda: load_flickr30k_entities(split_file, annotations_root, image_root)
    )
    MetadataCatalog.get(name).set(
        image_root=image_root,
        evaluator_type="phrase_grounding",
        readme_section=README_SECTION,
    )
