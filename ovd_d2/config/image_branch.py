"""Keys of the second opinion on a region's class: MODEL.IMAGE_BRANCH."""

from detectron2.config import CfgNode as CN

from ovd_d2.config.rules import ABOVE_0, COUNT_OR_0, SHARE, Rows, each, whole

RULES: Rows = (  # rule, prefix, keys below it
    (SHARE, "MODEL.IMAGE_BRANCH.", "NMS_THRESH"),
    (COUNT_OR_0, "MODEL.IMAGE_BRANCH.", "PROJECTION_HIDDEN"),
    (whole(-1), "MODEL.IMAGE_BRANCH.", "NUM_CONV CONV_DIM NUM_FC FC_DIM"),
    (each(ABOVE_0), "MODEL.IMAGE_BRANCH.", "CROP_SCALES"),
    (ABOVE_0, "MODEL.IMAGE_BRANCH.", "NOVEL_POWER"),
)  # fmt: skip


def add_keys(cfg: CN) -> None:
    """Adds the group to ``cfg``, in place."""
    _C = cfg.MODEL.IMAGE_BRANCH = CN()
    # A second opinion on the class of a region, in MODEL's IMAGE_BRANCH registry: "" none,
    # "DistilledImageBranch" a second head that learns from the teacher (ViLD-ensemble),
    # "TeacherTailBranch" the same with the last stages of the teacher's tower as its head,
    # "LabelledImageBranch" the same head trained on labels (the control), "TeacherOnCrops".
    _C.NAME = ""
    # "ensemble": geometric mean with the text branch; "objectness": sqrt(image branch's probability
    # x RPN objectness), the text branch's classes are not used (CLIP on crops).
    _C.SCORES = "ensemble"
    # Exponent of the text branch for base classes and of the image branch for novel ones (ViLD).
    _C.LAMBDA = 2.0 / 3.0
    # What the image branch is averaged with for novel classes in an ensemble: "text", the text
    # branch (ViLD), or "objectness", the RPN's, which does not take them for background.
    _C.NOVEL_PARTNER = "text"
    # Scores of novel classes in an ensemble are raised to it, above 0. AP of a class stays; above 1
    # they get lower, so that one score threshold can fit base and novel classes.
    _C.NOVEL_POWER = 1.0
    # Exponent of the text branch for all classes of a vocabulary without novel ones (DetPro).
    _C.FIXED_WEIGHT = 0.6
    # Shape of the second head; -1: as MODEL.ROI_BOX_HEAD. Not for C4 heads.
    _C.NUM_CONV = -1
    _C.CONV_DIM = -1
    _C.NUM_FC = -1
    _C.FC_DIM = -1
    # As MODEL.OPEN_VOCAB.PROJECTION_HIDDEN, for the second head.
    _C.PROJECTION_HIDDEN = 0
    # A map of the timm network below the FPN, such as "stride16", of which the second head pools
    # its regions, beside what the first pools; "": of what the first pools. Not for C4, cascades.
    _C.IN_FEATURE = ""
    # TeacherTailBranch: a teacher of ours ("mini-teacher", "exported:FILE"; "" for
    # MODEL.OPEN_VOCAB.TEXT_ENCODER), which must be the backbone's up to IN_FEATURE, see
    # MODEL.TIMM.WEIGHTS. TeacherOnCrops: image-text model ("" for MODEL.OPEN_VOCAB.TEXT_ENCODER),
    # sides of the crops relative to the box, and the IoU above which the box of lower objectness
    # is not looked at.
    _C.TEACHER = ""
    _C.CROP_SCALES = [1.0, 1.5]
    _C.NMS_THRESH = 0.9
