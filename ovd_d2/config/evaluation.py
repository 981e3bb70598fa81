"""Keys of evaluation: TEST."""

import re

from detectron2.config import CfgNode as CN

from ovd_d2.config.rules import COUNT, SHARE, Rows, Rule, either, one_of

RULES: Rows = (  # rule, prefix, keys below it
    (one_of("hotcoco", "lvis-api"), "TEST.", "LVIS_BACKEND"),
    (one_of("no_truth", "nan", "zero"), "TEST.", "ABSENT_CLASSES"),
    (Rule(lambda v: bool(re.fullmatch(r"(imagenet21k:0*[1-9]\d*)?", v)), '"" or imagenet21k:N'),
     "TEST.", "DISTRACTORS"),
    (either(SHARE, Rule(lambda v: v == -1, "-1 for the best one")),
     "TEST.PRESENCE.", "THRESHOLD"),
    (COUNT, "TEST.CLASS_AGNOSTIC.", "TOPK"),
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
    # Linear probe of CLIP (Radford et al. 2021, section 3.2) instead of zero-shot classification:
    # logistic regression by L-BFGS on the image tower's features before the projection, for
    # MODEL.META_ARCHITECTURE CLIP. DATASETS.TEST begins with TRAIN and VALIDATION, by which the
    # strength of the L2 penalty is chosen; behind them are data sets to report on.
    cfg.TEST.LINEAR_PROBE = CN({"ENABLED": False, "TRAIN": "", "VALIDATION": ""})
    # What a class that is not in the test images does to the mIoU of label maps: "no_truth" classes
    # without a true pixel are left out, though predicted (Detectron2); "nan" classes neither true
    # nor predicted are left out (mmsegmentation: GroupViT); "zero" none is, absent ones count 0
    # (LSeg). The same for data sets that show all of their classes.
    cfg.TEST.ABSENT_CLASSES = "no_truth"
    # "Is it there?": whether names are found where they are and nowhere else, by one score
    # threshold: F1 over pairs of an image and a name, F1 of boxes, cgF1 (SAM 3), beside AP.
    cfg.TEST.PRESENCE = CN()
    cfg.TEST.PRESENCE.ENABLED = False
    # From which score on a name is there; -1: the threshold that is best on the very data, which
    # nobody knows before (the results are called presence_at_best_of_same_data then).
    cfg.TEST.PRESENCE.THRESHOLD = 0.5
    # Are the objects found, whatever they are called? AP50 and R50 of the boxes as if all classes
    # were one, by MAVL's protocol, beside AP: the TOPK best detections of an image, IoU above 0.5.
    # Detections in images without an object are wrong for data sets of type "pascal_voc", and do
    # not count for others, as in the public code. ONLY: nothing else is reported, and a model that
    # finds objects without a vocabulary (MAVL) is asked for those, not for the data set's classes.
    cfg.TEST.CLASS_AGNOSTIC = CN({"ENABLED": False, "TOPK": 50, "ONLY": False})
