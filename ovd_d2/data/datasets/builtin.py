"""Registers the data sets that ovd_d2 knows, under ``$DETECTRON2_DATASETS``.

Like Detectron2's own registration it happens once, on import, and touches no file: whether the
files are there shows when a data set is used.
"""

import os
from functools import partial

from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances

from ovd_d2.data.datasets.coco_ovd import register_coco_ovd
from ovd_d2.data.datasets.flickr30k_entities import register_flickr30k_entities
from ovd_d2.data.datasets.grounding import register_grounding
from ovd_d2.data.datasets.imagenet import register_imagenet
from ovd_d2.data.datasets.lvis import register_lvis_ovd
from ovd_d2.data.datasets.mini.grounding import register_mini_grounding
from ovd_d2.data.datasets.mini.pairs import register_mini_pairs
from ovd_d2.data.datasets.mini.registration import register_mini
from ovd_d2.data.datasets.mini.semantic import register_mini_semantic
from ovd_d2.data.datasets.odinw import register_odinw
from ovd_d2.data.datasets.referring_expressions import SPLITS as EXPRESSION_SPLITS
from ovd_d2.data.datasets.referring_expressions import register_referring_expressions
from ovd_d2.data.datasets.semantic.ade20k_847 import register_ade20k_847
from ovd_d2.data.datasets.semantic.few_shot import register_few_shot
from ovd_d2.data.datasets.semantic.registration import register_semantic

# name: (annotation file, image folder, training split)
LVIS_SPLITS = {
    "lvis_v1_train_base": ("lvis/lvis_v1_train.json", "coco/", True),
    "lvis_v1_val_ovd": ("lvis/lvis_v1_val.json", "coco/", False),
}
LVIS_MINIVAL = {"lvis_v1_minival": LVIS_SPLITS["lvis_v1_val_ovd"]}
COCO_SPLITS = {
    "coco_2017_ovd_train_base": (
        "coco/annotations/instances_train2017.json",
        "coco/train2017",
        True,
    ),
    "coco_2017_ovd_val": ("coco/annotations/instances_val2017.json", "coco/val2017", False),
}
# The same images and boxes among all 80 names of COCO.
COCO_SPLITS_OF_80 = {
    name.replace("_ovd_", "_ovd_80_"): split for name, split in COCO_SPLITS.items()
}
# name: (json in MDETR's layout, image folder, training split)
GROUNDING_SPLITS = {
    f"flickr30k_{split}": (
        f"mdetr_annotations/final_flickr_separateGT_{split}.json",
        "flickr30k/images",
        split == "train",
    )
    for split in ("train", "val", "test")
}
GQA_VG_SPLITS = {"gqa_vg_train": ("mdetr_annotations/final_mixed_train.json", "gqa/images", True)}


def datasets_root() -> str:
    """The folder that holds the data sets: ``$DETECTRON2_DATASETS``, or "datasets"."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))


def register_all(root: str) -> None:
    """Registers all of them under the folder ``root``."""
    registrations = (
        (LVIS_SPLITS, register_lvis_ovd),
        (LVIS_MINIVAL, partial(register_lvis_ovd, only_minival=True)),
        (COCO_SPLITS, register_coco_ovd),
        (COCO_SPLITS_OF_80, partial(register_coco_ovd, all_names=True)),
        (GROUNDING_SPLITS, register_grounding),
        (GQA_VG_SPLITS, partial(register_grounding, without_coco=True)),
    )
    for splits, register in registrations:
        for name, (json_file, image_root, train) in splits.items():
            register(
                name, os.path.join(root, json_file), os.path.join(root, image_root), train=train
            )
    register_mini(root)
    register_mini_pairs(root)
    register_mini_grounding(root)
    register_mini_semantic(root)
    register_semantic(root)
    register_ade20k_847(root)
    register_few_shot(root)
    register_odinw(root)
    register_imagenet(root)
    for split in ("val", "test"):
        register_flickr30k_entities(
            f"flickr30k_entities_{split}",
            os.path.join(root, f"flickr30k/entities/{split}.txt"),
            os.path.join(root, "flickr30k/entities"),
            os.path.join(root, "flickr30k/images"),
        )
    for name, splits in EXPRESSION_SPLITS.items():
        for split in splits:
            register_referring_expressions(
                f"{name}_{split}",
                os.path.join(root, f"mdetr_annotations/finetune_{name}_{split}.json"),
                os.path.join(root, "coco/train2014"),
            )
    for split in ("train", "val"):  # classes and their names are those of the json
        register_coco_instances(
            f"objects365_v1_{split}",
            {"readme_section": "Objects365"},
            os.path.join(root, f"objects365/objects365_{split}.json"),
            os.path.join(root, f"objects365/{split}"),
        )


# A second import (a reload) must not register twice: Detectron2 refuses that.
if "lvis_v1_train_base" not in DatasetCatalog:
    register_all(datasets_root())
