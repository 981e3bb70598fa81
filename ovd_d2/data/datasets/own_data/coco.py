"""COCO and LVIS json files as anybody may have written them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovd_d2.data.datasets.findings import is_id, short
from ovd_d2.errors import OVDError

from .labels import Labels, RawBox, RawImage, class_name, to_floats


def looks_like_coco(content: Any) -> bool:
    """Whether a json is of COCO's kind."""
    return isinstance(content, dict) and "images" in content and "categories" in content


def read_coco(content: Any, file: Path, images: Path | None = None) -> Labels:
    """The labels of a COCO json.

    Args:
        content: of the file.
        file: for messages, and to look for the images beside it.
        images: their folder; None: that of ``file``, or images/ in it.

    Raises:
        OVDError: it is no COCO json.
    """
    if not looks_like_coco(content):
        raise OVDError(f"{file} is no COCO json: it lacks `images` or `categories`.")
    labels = Labels(str(file))
    names = _names(_entries(content, "categories", labels), labels)
    by_id = _images(_entries(content, "images", labels), _folders(file, images), labels)
    for annotation in _entries(content, "annotations", labels):
        _add_box(annotation, by_id, names, labels)
    if not names:
        raise OVDError(f"{file} has no category with an id and a name: name the classes there.")
    return labels


def _entries(content: Mapping[str, Any], key: str, labels: Labels) -> list[dict[str, Any]]:
    entries = content.get(key) or []
    if not isinstance(entries, list):
        raise OVDError(f"{labels.source}: `{key}` is {short(entries)}; it must be a list.")
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            labels.remarks.left_out(f"entries of `{key}` are no mappings", f"number {number}")
    return [entry for entry in entries if isinstance(entry, dict)]


def _names(categories: list[dict[str, Any]], labels: Labels) -> dict[Any, str]:
    """Names by category id; adds them to ``labels`` in the order of the ids."""
    names: dict[Any, str] = {}
    for category in categories:
        number, name = category.get("id"), class_name(category.get("name"))
        if not is_id(number) or not name or number in names:
            reason = "categories have no id of their own or no name"
            labels.remarks.left_out(reason, short(category))
            continue
        if name in names.values():
            reason = "class names have several ids and are taken as one"
            labels.remarks.note(reason, repr(name))
        names[number] = name
    order = sorted(names, key=lambda number: (isinstance(number, str), number))
    labels.names = list(dict.fromkeys(names[number] for number in order))
    return names


def _folders(file: Path, images: Path | None) -> list[Path]:
    return [images] if images else [file.parent, file.parent / "images", file.parent.parent]


def _images(
    entries: list[dict[str, Any]], folders: list[Path], labels: Labels
) -> dict[Any, RawImage]:
    by_id: dict[Any, RawImage] = {}
    for number, entry in enumerate(entries, start=1):
        image_id, name = entry.get("id"), entry.get("file_name")
        if name is None and isinstance(entry.get("coco_url"), str):  # LVIS: folder and file
            name = "/".join(entry["coco_url"].split("/")[-2:])
        if not isinstance(name, str) or not name or "\0" in name:
            labels.remarks.left_out("images have no file_name", f"number {number}")
        elif not is_id(image_id) or image_id in by_id:
            labels.remarks.left_out("images have no id of their own", name)
        else:
            size = to_floats((entry.get("width"), entry.get("height")))
            known = all(0 < side < 2**31 for side in size)
            by_id[image_id] = RawImage(
                _find(name, folders), (int(size[0]), int(size[1])) if known else None
            )
            labels.images.append(by_id[image_id])
    return by_id


def _find(name: str, folders: list[Path]) -> Path:
    """The file called ``name``, with its folders or without."""
    places = [folder / one for one in (name, Path(name).name) for folder in folders]
    return next((place for place in places if place.is_file()), places[0])


def _add_box(
    annotation: dict[str, Any], by_id: dict[Any, RawImage], names: dict[Any, str], labels: Labels
) -> None:
    where = f"annotation {short(annotation.get('id'))}"
    image_id, category = annotation.get("image_id"), annotation.get("category_id")
    box = annotation.get("bbox")
    if not is_id(image_id) or image_id not in by_id:
        labels.remarks.left_out("boxes are of images that the file does not list", where)
    elif not is_id(category) or category not in names:
        labels.remarks.left_out("boxes are of categories that the file does not list", where)
    elif not isinstance(box, list) or len(box) != 4:
        labels.remarks.left_out("annotations have no box of four numbers", where)
    else:
        x, y, width, height = to_floats(box)
        crowd = bool(annotation.get("iscrowd"))
        raw = RawBox(names[category], (x, y, width, height), where, crowd)
        by_id[image_id].boxes.append(raw)
