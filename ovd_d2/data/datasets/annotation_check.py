"""What must hold in annotation files, checked in one pass before anything is made of them.

COCO's, LVIS's and our label files, whoever opens them; ``record_check`` is for detections and for
data sets in Python. What cannot be meant is refused, what Detectron2 leaves out without a word is
said in a warning: both are counted, and the first are named by id and field.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ovd_d2.errors import OVDError

from .findings import BOX_RULE, LARGEST, NUMBERS, Findings, is_box, is_id, is_number, short

_MASK_PIXELS = 2**30  # of a run-length mask, which pycocotools unpacks


@dataclass(frozen=True)
class FileKind:
    """What kinds of annotation files differ in.

    Attributes:
        image_field: of an image, where its file is; "" if nobody will open it.
        with_ids: annotations need ids of their own, as the evaluators of COCO and LVIS do.
        boxes_optional: an annotation may come without a box.
        counts_from_one: category ids are 1 to K, as Detectron2's loader for LVIS takes them.
        blank_names: the names of categories may be white space; nobody will read them.
        for_training: warnings say what training will do without.
    """

    image_field: str = "file_name"
    with_ids: bool = True
    boxes_optional: bool = False
    counts_from_one: bool = False
    blank_names: bool = False
    for_training: bool = True


COCO = FileKind()
LVIS = FileKind(image_field="coco_url", counts_from_one=True)
TRUTH = FileKind(image_field="", blank_names=True)  # of COCO or LVIS, read by an evaluator
LABELS = FileKind(with_ids=False, boxes_optional=True)


def check_annotations(content: Any, path: str, kind: FileKind = COCO) -> None:
    """Checks what a json of images, categories and annotations holds.

    Without "annotations" (a test set) there are none to check. To be called by
    ``annotation_files.read_annotations``, which says in a sentence what is raised here.

    Args:
        content: of the file.
        path: of the file.
        kind: ``COCO``, ``LVIS``, ``TRUTH`` or ``LABELS``.

    Raises:
        OVDError: naming the file, the first wrong entries by their ids, and how many there are.
        KeyError: it has no images or no categories.
        TypeError: it is no mapping of lists.
    """
    if type(content) is not dict:
        raise TypeError(f"it is {short(content)}, not a mapping of images and annotations")
    found = Findings(path)
    lists = {"annotations": content.get("annotations", [])}
    lists.update({name: content[name] for name in ("images", "categories")})
    for name, entries in lists.items():
        if type(entries) is not list:
            raise TypeError(f"'{name}' is {short(entries)}, no list")
    categories = _check_categories(lists["categories"], kind, found)
    images = _check_images(lists["images"], kind, categories, found)
    found.refuse()  # annotations are looked at in the frame of their images
    _check_entries(lists["annotations"], images, categories, kind, found)
    if kind.with_ids and "minival" not in path:  # COCO's own minival repeats some, harmlessly
        _check_annotation_ids(lists["annotations"], found)
    found.refuse()
    if kind.for_training:
        found.tell()


def _mappings(entries: list, noun: str, found: Findings) -> Iterable[tuple[int, dict[str, Any]]]:
    """The entries that are mappings, with their numbers from 1."""
    for number, entry in enumerate(entries, start=1):
        if type(entry) is dict:
            yield number, entry
        else:
            found.wrong(f"{noun} number {number}", f"is {short(entry)}: not in the expected format")


def _check_categories(categories: list, kind: FileKind, found: Findings) -> Collection[Any]:
    """The ids of the categories."""
    if not categories:
        raise OVDError(
            f"{found.what} has no categories (an empty list of categories): an annotation file "
            "must name its classes."
        )
    ids = set()
    for number, category in _mappings(categories, "category", found):
        if "id" not in category or not is_id(category["id"]):
            problem = f"has the id {short(category.get('id'))}; give it a whole number"
            found.wrong(f"category number {number}", problem)
            continue
        category_id, name = category["id"], category.get("name")
        if category_id in ids:
            found.wrong("there are", f"two categories of the same id {category_id!r}")
        ids.add(category_id)
        if type(name) is not str or not (name.strip() or kind.blank_names):
            found.wrong(f"the name of category {category_id!r}", "is no text")
    if len({type(i) for i in ids}) > 1:
        found.wrong("the ids of categories", "are partly numbers and partly text")
    if kind.counts_from_one and any(type(i) is not int or i < 1 for i in ids):
        found.wrong("the ids of categories", "do not count from 1, as LVIS's do")
    return ids


def _check_images(
    images: list, kind: FileKind, categories: Collection[Any], found: Findings
) -> dict[Any, dict[str, Any]]:
    """The images by id."""
    by_id: dict[Any, dict[str, Any]] = {}
    for number, image in _mappings(images, "image", found):
        if "id" not in image:
            found.wrong(f"image number {number}", "lacks the entry 'id'")
            continue
        image_id = image["id"]
        if not is_id(image_id) or image_id in by_id:
            found.wrong(
                f"the image id {short(image_id)}",
                "comes twice or is neither a whole number nor text; give every image its own",
            )
            continue
        by_id[image_id] = image
        problem = _image_problem(image, kind, categories)
        if problem:
            found.wrong(f"image {image_id!r}", problem)
    if len({type(i) for i in by_id}) > 1:
        found.wrong("the ids of images", "are partly numbers and partly text")
    return by_id


def _image_problem(
    image: dict[str, Any], kind: FileKind, categories: Collection[Any]
) -> str | None:
    for key in ("height", "width"):
        if key not in image:
            return f"lacks the entry {key!r}"
    height, width = image["height"], image["width"]
    if not all(type(side) is int and 0 < side < LARGEST for side in (height, width)):
        return (
            f"is {short(width)} x {short(height)} pixels large; give width and height as whole "
            "numbers"
        )
    where = image.get(kind.image_field) if kind.image_field else "unread"
    if type(where) is not str or not where or "\0" in where:
        return f"has no {kind.image_field}; add it"
    if kind is LVIS and "/" not in where:
        return f"has the coco_url {short(where)}, which names no folder and file"
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        ids = image.get(key, [])
        if type(ids) is not list or not all(map(is_id, ids)):
            return f"has the {key} {short(ids)}; give a list of category ids"
        if kind is LVIS and not all(i in categories for i in ids):
            return f"has the {key} {short(ids)}, which `categories` does not list"
    return None


def _check_entries(
    annotations: list,
    images: Mapping[Any, dict[str, Any]],
    categories: Collection[Any],
    kind: FileKind,
    found: Findings,
) -> None:
    for number, annotation in _mappings(annotations, "annotation", found):
        problem = _annotation_problem(annotation, images, categories, kind)
        box = annotation.get("bbox")
        if problem is None and box is not None:
            image = images[annotation["image_id"]]
            problem = _extras_problem(annotation, image)
            if problem is None:
                _note_left_out(annotation, box, image, kind, number, found)
        if problem is not None:
            found.wrong(_name(annotation, number), problem)


def _name(annotation: dict[str, Any], number: int) -> str:
    if is_id(annotation.get("id")):
        return f"annotation {annotation['id']}"
    return f"annotation number {number}"


def _annotation_problem(
    annotation: dict[str, Any],
    images: Mapping[Any, Any],
    categories: Collection[Any],
    kind: FileKind,
) -> str | None:
    """What is wrong with what every annotation has."""
    for key in ("image_id", "category_id"):
        if key not in annotation:
            return f"lacks the entry {key!r}"
    image_id, category_id = annotation["image_id"], annotation["category_id"]
    if not is_id(image_id) or image_id not in images:
        return f"is of image {short(image_id)}, which `images` does not list"
    if not is_id(category_id) or category_id not in categories:
        return f"is of category {short(category_id)}, which `categories` does not list"
    box = annotation.get("bbox")
    if box is None and not kind.boxes_optional:
        return f"has no bbox; {BOX_RULE}"
    if box is not None and not is_box(box):
        return f"has the bbox {short(box)}; {BOX_RULE}"
    return None


def _extras_problem(annotation: dict[str, Any], image: dict[str, Any]) -> str | None:
    """What is wrong with what an annotation may have."""
    area, crowd = annotation.get("area", 0), annotation.get("iscrowd", 0)
    if not (type(area) in NUMBERS and 0 <= area < LARGEST**2):
        return f"has the area {short(area)}; give a finite number of pixels, or leave it out"
    if type(crowd) not in (bool, int, float) or crowd not in (0, 1):
        return f"has iscrowd {short(crowd)}; it must be 0 or 1"
    if annotation.get("ignore", 0):
        return "is marked 'ignore', which Detectron2 does not support"
    keypoints = annotation.get("keypoints")
    if keypoints and (
        type(keypoints) is not list or len(keypoints) % 3 or not all(map(is_number, keypoints))
    ):
        return f"has the keypoints {short(keypoints)}; give x, y and visibility of each"
    mask = annotation.get("segmentation")
    if not mask:
        return None
    return _mask_problem(mask, image)


def _mask_problem(mask: Any, image: dict[str, Any]) -> str | None:
    if type(mask) is dict:
        return run_length_problem(mask, image["height"], image["width"])
    if type(mask) is list and all(_is_polygon(polygon) for polygon in mask):
        return None
    return f"has the segmentation {short(mask)}; give polygons [[x, y, ...], ...] or run lengths"


def _is_polygon(polygon: Any) -> bool:
    """Whether it is a list of finite numbers, however many; fast, since LVIS has 80 million."""
    if type(polygon) is not list or not set(map(type, polygon)) <= {int, float}:
        return False
    return not polygon or -LARGEST < min(polygon) <= max(polygon) < LARGEST and _ordered(polygon)


def _ordered(numbers: list) -> bool:
    """Whether none is nan, which ``min`` and ``max`` may pass over."""
    total = sum(numbers)
    return total == total


def run_length_problem(mask: Mapping[str, Any], height: int, width: int) -> str | None:
    """What is wrong with a run-length mask of an image, None if nothing is.

    Args:
        mask: ``size`` and ``counts``, compressed (text) or not (a list).
        height: of the image,
        width: of the image.
    """
    size, counts = mask.get("size"), mask.get("counts")
    if type(size) is not list or size != [height, width]:
        return f"has a run-length mask of size {short(size)}; its image is [{height}, {width}]"
    if height * width > _MASK_PIXELS:
        return f"has a run-length mask of {height} x {width} pixels, too many to be unpacked"
    try:
        runs = _run_lengths(counts) if type(counts) in (str, bytes) else counts
    except ValueError:
        runs = None
    whole = type(runs) is list and all(type(r) is int and 0 <= r <= height * width for r in runs)
    if whole and sum(runs) == height * width:
        return None
    return f"has run lengths {short(counts)}, which do not fill its {height} x {width} pixels"


def _run_lengths(text: str | bytes) -> list[int]:
    """What pycocotools' compressed ``counts`` stand for (``rleFrString`` in its maskApi.c).

    Raises:
        ValueError: no such text.
    """
    runs, value, shift = [], 0, 0
    for letter in text.encode("ascii") if isinstance(text, str) else text:
        bits = letter - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(text)
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value |= -1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value, shift = 0, 0
    if shift:
        raise ValueError(text)
    return runs


def _note_left_out(
    annotation: dict[str, Any],
    box: Sequence[float],
    image: dict[str, Any],
    kind: FileKind,
    number: int,
    found: Findings,
) -> None:
    """Notes what training will do without, by Detectron2's rules."""
    x, y, width, height = box
    if kind is not LABELS and (not width or not height):  # a label file counts its own
        where = _name(annotation, number)
        found.left_out("boxes have no area and are left out of training", where)
    elif x >= image["width"] or y >= image["height"] or x + width <= 0 or y + height <= 0:
        where = _name(annotation, number)
        found.left_out("boxes lie outside of their images and are left out of training", where)
    mask = annotation.get("segmentation")
    if type(mask) is list and mask and any(len(p) < 6 or len(p) % 2 for p in mask):
        where = _name(annotation, number)
        if any(len(p) >= 6 and len(p) % 2 == 0 for p in mask):
            found.left_out("objects have a polygon of fewer than three points, left out", where)
        else:
            found.left_out(
                "objects are left out: none of their polygons has three points, x and y each", where
            )


def _check_annotation_ids(annotations: list, found: Findings) -> None:
    seen = set()
    for number, annotation in enumerate(annotations, start=1):
        if type(annotation) is not dict:
            continue
        if type(annotation.get("id")) is not int or not is_id(annotation["id"]):
            found.wrong(
                f"annotation number {number}",
                f"has the id {short(annotation.get('id'))}; give it a whole number of its own",
            )
        elif annotation["id"] in seen:
            found.wrong(f"annotation {annotation['id']}", "has the id of another one")
        else:
            seen.add(annotation["id"])
