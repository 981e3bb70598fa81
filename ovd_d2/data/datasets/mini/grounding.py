"""The mini benchmark with grounded captions: what each caption names has boxes, and all of them."""

from __future__ import annotations

import os
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.data.datasets.grounding import EVALUATOR
from ovd_d2.data.datasets.mini.captions import grounded_caption
from ovd_d2.data.datasets.mini.categories import load_categories
from ovd_d2.data.datasets.mini.registration import SECTION, load_mini
from ovd_d2.data.datasets.mini.splits import ANNOTATION_SETS, VERSION, rng_for
from ovd_d2.structures import TokenSpans

# Data set name -> annotation file without suffix.
GROUNDING = {
    "mini_v1_grounding_train": "train_base",
    "mini_v1_grounding_val": "val",
    "mini_v1_grounding_test": "test",
}


def register_mini_grounding(root: str | os.PathLike[str]) -> None:
    """Registers mini_v1_grounding_train, _val and _test.

    Captions and boxes of training images are of base categories alone, those of val and test of
    all. ``evaluator_type`` "phrase_grounding" for val and test. The captions are made when the
    records are, and are always the same.

    Args:
        root: folder of all data sets; the benchmark is in ``root``/mini-v1.
    """
    folder = os.path.join(os.fspath(root), VERSION)
    image_root = os.path.join(folder, "images", "")
    for name, annotation_set in GROUNDING.items():
        json_file = os.path.join(folder, "annotations", f"{annotation_set}.json")
        DatasetCatalog.register(
            name, lambda s=annotation_set, j=json_file: load_mini_grounding(j, image_root, s)
        )
        metadata = MetadataCatalog.get(name).set(
            json_file=json_file,
            image_root=image_root,
            readme_section=SECTION,
            prepare_command="ovd mini build",
        )
        if annotation_set != "train_base":
            metadata.set(evaluator_type=EVALUATOR)


def load_mini_grounding(
    json_file: str, image_root: str, annotation_set: str
) -> list[dict[str, Any]]:
    """Records as :func:`~ovd_d2.data.datasets.grounding.load_grounding_json` gives them.

    Images without any box are left out, since there is nothing to name. ``phrase_classes`` of a
    record is the category (0 to 159) of each phrase of its caption.

    Args:
        json_file: the annotation file.
        image_root: the folder that holds the folders of images.
        annotation_set: its name, a key of ``ANNOTATION_SETS``.

    Raises:
        OVDError: the benchmark is not built, or the file is damaged.
    """
    categories = load_categories()
    index_of = {category: index for index, category in enumerate(categories)}
    records = []
    for image in load_mini(json_file, image_root):
        if not image["annotations"]:
            continue
        rng = rng_for("grounding", ANNOTATION_SETS[annotation_set], image["image_id"])
        shown = [categories[a["category_id"]] for a in image["annotations"]]
        caption, named = grounded_caption(rng, shown)
        classes = [index_of[category] for category, _ in named]
        records.append(
            {
                **{key: image[key] for key in ("file_name", "image_id", "height", "width")},
                "caption": TokenSpans(caption, tuple((span,) for _, span in named)),
                "phrase_classes": classes,
                "annotations": [
                    {
                        "bbox": a["bbox"],
                        "bbox_mode": a["bbox_mode"],
                        "category_id": classes.index(a["category_id"]),
                    }
                    for a in image["annotations"]
                ],
            }
        )
    return records
