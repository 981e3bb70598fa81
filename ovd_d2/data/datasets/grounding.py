"""Images whose captions are grounded: boxes that belong to phrases, in MDETR's layout of json.

COCO's layout, with ``caption`` in each image and ``tokens_positive`` in each annotation: the
characters [begin, end) of its phrase, one or more pairs. ``tokens_positive_eval`` of an image,
which may be missing, lists phrases that are asked for, with boxes or without.

A file is a data set where it is named, "grounding:IMAGE_FOLDER:FILE.json", or "grounding:FILE.json"
if it says itself where its images are, as those of :func:`write_grounding_json` do.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ovd_d2.data.datasets.annotation_check import FileKind
from ovd_d2.data.datasets.annotation_files import (
    check_records,
    explain_errors,
    read_annotations,
    uncollected,
)
from ovd_d2.data.datasets.findings import Findings, short
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import atomic_write
from ovd_d2.structures import TokenSpans
from ovd_d2.structures.grounding import span_problem

PREFIX = "grounding:"
KIND = "ovd_d2 grounding"
README_SECTION = "Grounding"
EVALUATOR = "phrase_grounding"
# Entries of an image that its record keeps, by which Flickr30k Entities knows it.
_COPIED = ("sentence_id", "original_img_id")
_FILE = FileKind(with_ids=False)
_NO_PHRASE = "boxes belong to no phrase (tokens_positive is empty) and are left out"


def register_grounding(
    name: str, json_file: str, image_root: str, *, train: bool, without_coco: bool = False
) -> None:
    """Registers a data set of grounded captions; reads no file.

    Args:
        name: of the data set.
        json_file: see the top of this file.
        image_root: the folder of its images.
        train: no evaluator is named for it.
        without_coco: see :func:`load_grounding_json`.
    """
    DatasetCatalog.register(
        name, lambda: load_grounding_json(json_file, image_root, without_coco=without_coco)
    )
    metadata = MetadataCatalog.get(name).set(
        json_file=json_file, image_root=image_root, readme_section=README_SECTION
    )
    if not train:
        metadata.set(evaluator_type=EVALUATOR)


def register_grounding_file(name: str) -> bool:
    """Registers "grounding:IMAGE_FOLDER:FILE.json" or "grounding:FILE.json" with Detectron2; the
    file is read when it is used.

    Returns:
        whether ``name`` is of that form; if not, nothing happens.

    Raises:
        OVDError: it begins like one, but names no file.
    """
    if not name.startswith(PREFIX):
        return False
    image_root, _, json_file = name.removeprefix(PREFIX).rpartition(":")
    if not json_file:
        raise OVDError(
            f"The data set {name!r} must be grounding:IMAGE_FOLDER:FILE.json or "
            "grounding:FILE.json, a json of grounded captions."
        )
    if name not in DatasetCatalog.list():
        json_file, root = os.path.expanduser(json_file), os.path.expanduser(image_root) or None
        DatasetCatalog.register(name, lambda: load_grounding_json(json_file, root))
        MetadataCatalog.get(name).set(
            json_file=json_file, evaluator_type=EVALUATOR, readme_section=README_SECTION
        )
    return True


def load_grounding_json(
    json_file: str | os.PathLike, image_root: str | None = None, *, without_coco: bool = False
) -> list[dict[str, Any]]:
    """Records in Detectron2's format with ``caption``, :class:`TokenSpans`.

    ``category_id`` of an annotation is the number of its phrase in ``caption.spans``: first those
    of ``tokens_positive_eval``, then the others in the order of the file. Boxes are x, y, width,
    height in pixels. Annotations of no phrase are left out and counted in a warning.

    Args:
        json_file: see the top of this file.
        image_root: the folder of its images; None: ``info.image_root``, which counts from the
            json's own folder.
        without_coco: leave out images whose ``data_source`` is "coco", as GLIP does with MDETR's
            mixed data, for some of them are in COCO's validation set.

    Returns:
        one record per image, in the order of image ids; with ``sentence_id`` and
        ``original_img_id`` where the file has them.

    Raises:
        OVDError: file or folder is missing, or holds a wrong entry, which is named.
    """
    json_file = os.fspath(json_file)
    content = read_annotations(json_file, README_SECTION, _FILE)
    with explain_errors(json_file, README_SECTION), uncollected():
        if image_root is None:
            image_root = content["info"]["image_root"]
            image_root = os.path.join(os.path.dirname(json_file), os.path.expanduser(image_root))
        images = content["images"]
        if without_coco:
            images = [image for image in images if image.get("data_source") != "coco"]
        found = Findings(json_file)
        phrases = _eval_phrases(images, found)
        annotations = _annotations(content["annotations"], images, phrases, found)
        found.refuse()
        found.tell()
        records = [
            {
                "file_name": os.path.join(image_root, image["file_name"]),
                "image_id": image["id"],
                "height": image["height"],
                "width": image["width"],
                "caption": TokenSpans(image["caption"], tuple(phrases[image["id"]])),
                "annotations": annotations[image["id"]],
                **{key: image[key] for key in _COPIED if key in image},
            }
            for image in sorted(images, key=lambda image: image["id"])
        ]
    check_records(records, json_file, README_SECTION)
    return records


_Phrases = dict[tuple[tuple[int, int], ...], int]


def _eval_phrases(images: Sequence[Mapping[str, Any]], found: Findings) -> dict[Any, _Phrases]:
    """Image id -> the phrases that are asked for, with their numbers."""
    phrases: dict[Any, _Phrases] = {}
    for image in images:
        own = phrases[image["id"]] = {}
        caption, asked = image.get("caption"), image.get("tokens_positive_eval") or []
        if type(caption) is not str:
            found.wrong(f"image {image['id']!r}", f"has the caption {short(caption)}; give a text")
        elif type(asked) is not list:
            found.wrong(f"image {image['id']!r}", f"has tokens_positive_eval {short(asked)}")
        else:
            for spans in asked:
                problem = _phrase_problem(caption, spans)
                if problem:
                    found.wrong(f"tokens_positive_eval of image {image['id']!r}", problem)
                else:
                    own.setdefault(_key(spans), len(own))
    return phrases


def _annotations(
    annotations: Iterable[Mapping[str, Any]],
    images: Sequence[Mapping[str, Any]],
    phrases: dict[Any, _Phrases],
    found: Findings,
) -> dict[Any, list[dict[str, Any]]]:
    """Image id -> its boxes as a record has them; adds their phrases to ``phrases``."""
    captions = {image["id"]: image.get("caption") for image in images}
    records: dict[Any, list[dict[str, Any]]] = {image_id: [] for image_id in captions}
    for number, annotation in enumerate(annotations, start=1):
        image_id, spans = annotation["image_id"], annotation.get("tokens_positive")
        if type(captions.get(image_id)) is not str:
            continue  # of an image that is left out, or is named as wrong already
        where = f"annotation {annotation.get('id', f'number {number}')}"
        if spans == []:
            found.left_out(_NO_PHRASE, where)
            continue
        problem = _phrase_problem(captions[image_id], spans)
        if problem:
            found.wrong(f"tokens_positive of {where}", problem)
            continue
        own = phrases[image_id]
        entry = {
            "bbox": annotation["bbox"],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": own.setdefault(_key(spans), len(own)),
        }
        entry.update({k: annotation[k] for k in ("iscrowd", "score") if k in annotation})
        records[image_id].append(entry)
    return records


def _phrase_problem(caption: str, spans: Any) -> str | None:
    if type(spans) is not list:
        return f"is {short(spans)}; give a list of [begin, end) pairs"
    return span_problem(caption, spans)


def _key(spans: Iterable[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    return tuple(sorted((begin, end) for begin, end in spans))


def write_grounding_json(
    path: str | os.PathLike,
    records: Iterable[Mapping[str, Any]],
    image_root: str | os.PathLike,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Writes grounded captions atomically, in the layout that :func:`load_grounding_json` reads;
    its records come back the same, phrases without a box too. Equal phrases become one.

    Args:
        path: of the json; its folder must be there.
        records: as :func:`load_grounding_json` gives them; boxes in any ``bbox_mode``, ``score``
            where they have one. Images without boxes are written too.
        image_root: the folder that ``file_name`` of each image is in; it is written relative to
            that of the json.
        facts: what else ``info`` shall say, such as the detector.

    Raises:
        OVDError: a record without a caption, an annotation of a phrase that its caption has not, or
            with a box that is none.
    """
    root = os.path.abspath(image_root)
    images, annotations = [], []
    for record in records:
        caption = record.get("caption")
        if not isinstance(caption, TokenSpans):
            raise OVDError(
                f"the caption of {record['file_name']} is {short(caption)}; give TokenSpans"
            )
        images.append(
            {
                "id": record["image_id"],
                "file_name": os.path.relpath(os.path.abspath(record["file_name"]), root),
                "height": record["height"],
                "width": record["width"],
                "caption": caption.caption,
                "tokens_positive_eval": caption.spans,
                **{key: record[key] for key in _COPIED if key in record},
            }
        )
        for annotation in record.get("annotations", ()):
            entry = _written(annotation, caption, record["file_name"])
            number = len(annotations) + 1
            annotations.append({"id": number, "image_id": record["image_id"], **entry})
    folder = os.path.dirname(os.path.abspath(path))
    content = {
        "info": {**(facts or {}), "kind": KIND, "image_root": os.path.relpath(root, folder)},
        "images": images,
        "categories": [{"id": 1, "name": "object"}],
        "annotations": annotations,
    }
    with atomic_write(path) as file:
        file.write(json.dumps(content, allow_nan=False).encode())


def _written(annotation: Mapping[str, Any], caption: TokenSpans, file_name: str) -> dict[str, Any]:
    """An annotation of a record as the file has it."""
    phrase = annotation["category_id"]
    if not 0 <= phrase < len(caption):
        raise OVDError(
            f"an annotation of {file_name} has the category_id {phrase}, but its caption has "
            f"{len(caption)} phrases: category_id must be the number of one"
        )
    box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYWH_ABS)
    box = [float(value) for value in box]
    if not all(map(math.isfinite, box)) or min(box[2:]) < 0:
        raise OVDError(f"an annotation of {file_name} has the bbox {box}, which is no box")
    entry = {
        "category_id": 1,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": int(annotation.get("iscrowd", 0)),
        "tokens_positive": caption.spans[phrase],
    }
    if "score" in annotation:
        entry["score"] = float(annotation["score"])
    return entry
