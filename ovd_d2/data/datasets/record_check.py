"""What must hold in detections and in dataset records, by the rules of ``annotation_check``."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from detectron2.structures import BoxMode

from ovd_d2.errors import OVDError

from .findings import BOX_RULE, Findings, is_box, is_id, is_number, short


def checked_results(
    entries: Any, path: str, *, scored: bool, category_ids: Collection[Any] | None = None
) -> list[dict[str, Any]]:
    """The entries of a json of detections, as COCO's and LVIS's results are written.

    Args:
        entries: a list of {"image_id", "bbox": [x, y, width, height], "score"}, or a mapping whose
            "annotations" are one.
        path: of the file.
        scored: every entry needs a score, else it may be missing.
        category_ids: every entry needs a category_id, and those of other ones are counted in a
            warning; None: it is ignored.

    Raises:
        OVDError: naming the file, the first wrong entries by their numbers from 0, and how many
            there are.
    """
    if type(entries) is dict and "annotations" in entries:
        entries = entries["annotations"]
    if type(entries) is not list:
        raise OVDError(f"{path} must hold a list of results, as COCO's; it is another kind of json")
    found = Findings(path)
    for number, entry in enumerate(entries):
        problem = _result_problem(entry, scored, with_category=category_ids is not None)
        if problem:
            found.wrong(f"entry {number} is no result:", problem)
        elif category_ids is not None and entry["category_id"] not in category_ids:
            found.left_out("results are of categories that nobody asked for", f"entry {number}")
    found.refuse()
    found.tell()
    return entries


def _result_problem(entry: Any, scored: bool, with_category: bool) -> str | None:
    if type(entry) is not dict:
        return f"it is {short(entry)}"
    if not is_id(entry.get("image_id")):
        return f"its image_id is {short(entry.get('image_id'))}"
    if not is_box(entry.get("bbox")):
        return f"its bbox is {short(entry.get('bbox'))}; {BOX_RULE}"
    score = entry.get("score")
    if not is_number(score) and (scored or score is not None):
        return f"its score is {short(score)}; give a finite number"
    if with_category and not is_id(entry.get("category_id")):
        return f"its category_id is {short(entry.get('category_id'))}"
    return None


def check_dataset_records(
    records: Sequence[Mapping[str, Any]], what: str, num_classes: int | None
) -> None:
    """Checks records in Detectron2's dataset format, as functions of users' own give them.

    Args:
        records: one mapping per image.
        what: the data set, for messages.
        num_classes: K; None if the data set does not name its classes.

    Raises:
        OVDError: naming the data set, the first wrong annotations by image, and how many there are.
    """
    found = Findings(what)
    for number, record in enumerate(records):
        for place, annotation in enumerate(record.get("annotations") or ()):
            problem = _record_problem(annotation, num_classes)
            if problem:
                image = record.get("image_id", record.get("file_name", f"number {number}"))
                found.wrong(f"annotation {place} of image {short(image)}", problem)
    found.refuse()


def _record_problem(annotation: Mapping[str, Any], num_classes: int | None) -> str | None:
    """What is wrong with an annotation of a record, whose numbers may be numpy's."""
    category, box = annotation.get("category_id"), annotation.get("bbox")
    if box is None or "bbox_mode" not in annotation:
        return "has no bbox or no bbox_mode"
    values = box.tolist() if hasattr(box, "tolist") else list(box)
    values = [v.item() if hasattr(v, "item") else v for v in values]
    # Rotated boxes have five numbers.
    good = len(values) in (4, 5) and all(map(is_number, values))
    if good and annotation["bbox_mode"] == BoxMode.XYWH_ABS:
        good = is_box(values)
    if good and annotation["bbox_mode"] == BoxMode.XYXY_ABS:
        good = values[0] <= values[2] and values[1] <= values[3]
    if not good:
        return f"has the bbox {short(values)}; it must be four finite numbers, no side below 0"
    category = category.item() if hasattr(category, "item") else category
    if type(category) is not int or category < 0 or (num_classes and category >= num_classes):
        upper = f"0 to {num_classes - 1}" if num_classes else "from 0 on"
        return f"has category_id={short(category)}; the classes of its data set are {upper}"
    return None
