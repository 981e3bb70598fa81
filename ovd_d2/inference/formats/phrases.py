"""Grounded captions as detections: every phrase that has a box is a class."""

from collections.abc import Mapping
from typing import Any

from ovd_d2.errors import OVDError
from ovd_d2.structures.grounding import TokenSpans, span_problem

_PHRASE = "tokens_positive"
_WITHOUT = "object"  # the class of boxes that belong to no phrase


def has_phrases(content: Any) -> bool:
    """Whether ``content`` has boxes of phrases, as `ovd pseudo-label --task grounding` writes."""
    rows = content.get("annotations") if isinstance(content, Mapping) else None
    return isinstance(rows, list) and any(isinstance(r, Mapping) and _PHRASE in r for r in rows)


def phrases_as_classes(content: Mapping[str, Any]) -> dict[str, Any]:
    """The same with a category for each phrase, in lower case, in the order of the boxes; an image
    that comes with several captions is one image.

    Args:
        content: a json of images, categories and annotations that has been checked.

    Raises:
        OVDError: a phrase that is not in its caption.
    """
    by_file: dict[Any, dict[str, Any]] = {}
    for image in content["images"]:
        by_file.setdefault(image.get("file_name", image["id"]), image)
    first = {i["id"]: by_file[i.get("file_name", i["id"])]["id"] for i in content["images"]}
    captions = {image["id"]: image.get("caption") for image in content["images"]}
    numbers: dict[str, int] = {}
    rows = []
    for row in content["annotations"]:
        name = _phrase(row, captions[row["image_id"]])
        category = numbers.setdefault(name, len(numbers) + 1)
        rows.append({**row, "image_id": first[row["image_id"]], "category_id": category})
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    images = list(by_file.values())
    return {**content, "images": images, "categories": categories, "annotations": rows}


def _phrase(row: Mapping[str, Any], caption: Any) -> str:
    spans = row.get(_PHRASE)
    if not spans:
        return _WITHOUT
    if not isinstance(caption, str) or not isinstance(spans, list):
        raise OVDError(f"image {row['image_id']!r} has boxes of phrases, but no caption; add it.")
    if problem := span_problem(caption, spans):
        raise OVDError(f"a box of image {row['image_id']!r} {problem}.")
    (phrase,) = TokenSpans(caption, (spans,)).phrases()
    return " ".join(phrase.lower().split()) or _WITHOUT
