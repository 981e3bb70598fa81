"""The mini benchmark as label maps, which are made of its masks when they are read."""

from __future__ import annotations

import os
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.data.datasets.mini.registration import SECTION, class_metadata, load_mini
from ovd_d2.data.datasets.mini.splits import VERSION
from ovd_d2.data.datasets.semantic.label_sets import BACKGROUND, IGNORE_LABEL
from ovd_d2.data.datasets.semantic.registration import EVALUATOR

# Annotation set -> annotation file without suffix. train_base needs the outlines of novel objects.
SOURCES = {
    "train_all": "train_all",
    "train_base": "train_all",
    "val": "val",
    "val_seen": "val_seen",
    "test": "test",
}


def register_mini_semantic(root: str | os.PathLike[str]) -> None:
    """Registers mini_v1_sem_seg_train_all, _train_base, _val, _val_seen and _test, of 161 classes,
    the first being background; and mini_v1_objects_sem_seg_* of the 160 alone, where background is
    ignored.

    In train_base the pixels of novel objects are ignored too. ``is_novel`` is as in the detection
    splits, False for background; ``ignore_label`` is 255.

    Args:
        root: folder of all data sets; the benchmark is in ``root``/mini-v1.
    """
    folder = os.path.join(os.fspath(root), VERSION)
    image_root = os.path.join(folder, "images", "")
    for annotation_set, source in SOURCES.items():
        json_file = os.path.join(folder, "annotations", f"{source}.json")
        facts = class_metadata(annotation_set)
        for prefix, background in (("mini_v1_sem_seg", True), ("mini_v1_objects_sem_seg", False)):
            name = f"{prefix}_{annotation_set}"
            DatasetCatalog.register(
                name,
                lambda j=json_file, s=annotation_set, b=background: load_mini_semantic(
                    j, image_root, base_only=s == "train_base", background=b
                ),
            )
            first = int(background)
            MetadataCatalog.get(name).set(
                json_file=json_file,
                image_root=image_root,
                evaluator_type=EVALUATOR,
                ignore_label=IGNORE_LABEL,
                readme_section=SECTION,
                prepare_command="ovd mini build",
                stuff_classes=[BACKGROUND][:first] + facts["thing_classes"],
                synonyms=[[BACKGROUND]][:first] + facts["synonyms"],
                definitions=[""][:first] + facts["definitions"],
                is_novel=[False][:first] + facts["is_novel"],
            )


def load_mini_semantic(
    json_file: str, image_root: str, *, base_only: bool, background: bool
) -> list[dict[str, Any]]:
    """One record per image, with ``sem_seg_masks`` of its objects in the order in which they were
    drawn; masks are of what is visible, so that no two overlap.

    Args:
        json_file: an annotation file with the objects of all categories.
        image_root: the folder that holds the folders of images.
        base_only: nothing is said of novel objects but where they are: their class is None.
        background: is class 0, and the categories begin with 1; otherwise it is ignored and they
            begin with 0.

    Raises:
        OVDError: the benchmark is not built, or the file is damaged.
    """
    novel = class_metadata("val")["is_novel"]
    records = []
    for image in load_mini(json_file, image_root):
        masks = [] if background else [_everything(image["height"], image["width"])]
        for annotation in image["annotations"]:
            category = annotation["category_id"]
            hidden = base_only and novel[category]
            masks.append(
                {
                    "segmentation": annotation["segmentation"],
                    "class": None if hidden else category + background,
                }
            )
        records.append(
            {
                **{key: image[key] for key in ("file_name", "image_id", "height", "width")},
                "sem_seg_file_name": json_file,
                "sem_seg_masks": masks,
            }
        )
    return records


def _everything(height: int, width: int) -> dict[str, Any]:
    """A mask of the whole image, to be ignored."""
    corners = [0, 0, width, 0, width, height, 0, height]
    return {"segmentation": [corners], "class": None}
