"""Draws visual examples of classes from the annotations of mini."""

import json
import os
import random
from pathlib import Path

from ovd_d2.data.datasets.mini.categories import load_categories
from ovd_d2.data.datasets.mini.splits import ANNOTATION_SETS, VERSION
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import check_output, write_json

CLASSES = ("novel", "all")


def draw_examples(
    root: Path, out: Path, *, split: str = "val", count: int, seed: int, classes: str = "novel"
) -> int:
    """Writes a .json of examples with all names of mini in their order; the others by their words.

    Args:
        root: folder of all data sets.
        out: the file.
        split: whose boxes; with "val" nothing of the test images is looked at.
        count: boxes per class, as far as there are so many.
        seed: of the choice.
        classes: which by examples: "novel" or "all".

    Returns:
        how many boxes.

    Raises:
        OVDError: a wrong argument, mini is not built, or ``out`` cannot be written.
    """
    if split not in ANNOTATION_SETS or classes not in CLASSES:
        raise OVDError(
            f"--split {split}, --classes {classes}: splits are {', '.join(ANNOTATION_SETS)}, "
            f"classes {' or '.join(CLASSES)}."
        )
    check_output("--out", out)
    folder = root / VERSION
    try:
        truth = json.loads((folder / "annotations" / f"{split}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OVDError(f"{folder} is not there or broken: run `ovd mini build`.") from error
    images = {image["id"]: folder / "images" / image["file_name"] for image in truth["images"]}
    boxes: dict[int, list[dict]] = {}
    for entry in truth["annotations"]:
        boxes.setdefault(entry["category_id"], []).append(entry)
    rng = random.Random(seed)
    content = {}
    for number, category in enumerate(load_categories(), start=1):
        found = boxes.get(number, [])
        rng.shuffle(found)
        chosen = found[:count] if classes == "all" or category.is_novel else []
        content[category.name] = [_entry(entry, images, out) for entry in chosen]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, {name: entries or None for name, entries in content.items()})
    return sum(map(len, content.values()))


def _entry(annotation: dict, images: dict[int, Path], out: Path) -> dict:
    x, y, width, height = annotation["bbox"]
    image = os.path.relpath(images[annotation["image_id"]], out.parent)
    return {"image": image, "box": [x, y, x + width, y + height]}
