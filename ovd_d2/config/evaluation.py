"""Keys of evaluation: TEST."""

import re

from detectron2.config import CfgNode as CN

from ovd_d2.config.rules import Rows, Rule, one_of

RULES: Rows = (  # rule, prefix, keys below it
    (one_of("hotcoco", "lvis-api"), "TEST.", "LVIS_BACKEND"),
    (one_of("no_truth", "nan", "zero"), "TEST.", "ABSENT_CLASSES"),
    (Rule(lambda v: bool(re.fullmatch(r"(imagenet21k:0*[1-9]\d*)?", v)), '"" or imagenet21k:N'),
     "TEST.", "DISTRACTORS"),
)  # fmt: skip


def add_keys(cfg: CN) -> None:
    """Adds the group to ``cfg``, in place."""
    # "hotcoco" (fast) or "lvis-api" (reference).
    cfg.TEST.LVIS_BACKEND = "hotcoco"
    # Names that compete with the data set's classes in evaluation and are not scored:
    # "imagenet21k:N" takes N of ImageNet-21K (RKD's strict setting on LVIS: four times its 1203).
    cfg.TEST.DISTRACTORS = ""
    # Also report AP with 10,000 detections per class over the data set instead of 300 per image
    # (Dave et al. 2021, "fixed AP").
    cfg.TEST.FIXED_AP = False
    # What a class that is not in the test images does to the mIoU of label maps: "no_truth" classes
    # without a true pixel are left out, though predicted (Detectron2); "nan" classes neither true
    # nor predicted are left out (mmsegmentation: GroupViT); "zero" none is, absent ones count 0
    # (LSeg). The same for data sets that show all of their classes.
    cfg.TEST.ABSENT_CLASSES = "no_truth"
