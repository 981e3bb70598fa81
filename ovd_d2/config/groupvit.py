"""Keys of segmentation from image-text pairs (Xu et al. 2022, "GroupViT"): MODEL.GROUPVIT."""

from detectron2.config import CfgNode as CN

from ovd_d2.config.rules import (
    ABOVE_0,
    BELOW_1,
    COUNT,
    COUNT_OR_0,
    SHARE,
    Rows,
    Rule,
    each,
    is_number,
    one_of,
)

RULES: Rows = (  # rule, prefix, keys below it
    (COUNT, "MODEL.GROUPVIT.",
     "IMAGE_SIZE PATCH WIDTH HEADS TEXT.WIDTH TEXT.HEADS TEXT.LAYERS TEXT.CONTEXT EMBED_DIM "
     "PROJECTOR_HIDDEN WINDOW_TEST STRIDE_TEST TOP_CLASSES_TEST"),
    (each(COUNT), "MODEL.GROUPVIT.", "DEPTHS OUTPUT_GROUPS"),
    (each(COUNT_OR_0), "MODEL.GROUPVIT.", "GROUP_TOKENS"),
    (BELOW_1, "MODEL.GROUPVIT.", "DROP_PATH_RATE"),
    (ABOVE_0, "MODEL.GROUPVIT.",
     "ASSIGNMENT_TEMPERATURE COUNT_OFFSET LOGIT_SCALE_INIT LOGIT_SCALE_MAX"),
    (one_of("SyncBN", "BN"), "MODEL.GROUPVIT.", "PROJECTOR_NORM"),
    (one_of("", "soft_targets", "log_sum"), "MODEL.GROUPVIT.", "MULTI_LABEL_LOSS"),
    (SHARE, "MODEL.GROUPVIT.", "BACKGROUND_THRESH_TEST"),
    (Rule(lambda v: is_number(v) and 0 < v <= 1, "above 0 and up to 1"), "MODEL.GROUPVIT.",
     "CROP_SHARE_TEST"),
)  # fmt: skip


def add_keys(cfg: CN) -> None:
    """Adds the group to ``cfg``, in place."""
    # For MODEL.META_ARCHITECTURE GroupViT.
    _C = cfg.MODEL.GROUPVIT = CN()
    # Side of training images and of images to classify; of a patch; both in pixels.
    _C.IMAGE_SIZE = 224
    _C.PATCH = 16
    # Width and attention heads of the image encoder.
    _C.WIDTH = 384
    _C.HEADS = 6
    # Blocks of each stage; its group tokens (the last stage has none); groups that the grouping
    # block at its end makes (one number less).
    _C.DEPTHS = [6, 3, 3]
    _C.GROUP_TOKENS = [64, 8, 0]
    _C.OUTPUT_GROUPS = [64, 8]
    # Stochastic depth of the last block; of the others less, linearly from 0.
    _C.DROP_PATH_RATE = 0.1
    # Each token goes to one group (straight-through gradient); in training with Gumbel noise, the
    # softmax having this temperature.
    _C.HARD_ASSIGNMENT = True
    _C.GUMBEL_NOISE = True
    _C.ASSIGNMENT_TEMPERATURE = 1.0
    # A segment is the sum of its tokens' values over their number + COUNT_OFFSET; False: their sum.
    _C.AVERAGE = True
    _C.COUNT_OFFSET = 1.0
    # The text side, as MODEL.CLIP.TEXT_TOWER: "transformer" of TEXT's sizes, "locked:ENCODER" or
    # "trained:ENCODER".
    _C.TEXT_TOWER = "transformer"
    _C.TEXT = CN({"WIDTH": 256, "HEADS": 4, "LAYERS": 12, "CONTEXT": 77})
    # D, the width of the common space; hidden width of the projectors into it, and their batch
    # norm: "SyncBN" over all processes, or "BN" (several processes on CPUs need it).
    _C.EMBED_DIM = 256
    _C.PROJECTOR_HIDDEN = 4096
    _C.PROJECTOR_NORM = "SyncBN"
    # Factors on the cosine, one for each loss: first value, and the largest that counts.
    _C.LOGIT_SCALE_INIT = 1 / 0.07
    _C.LOGIT_SCALE_MAX = 100.0
    # Loss on INPUT.PAIRS.PROMPTED_NOUNS: "soft_targets" (the public code's), "log_sum" (the
    # paper's), or "" for none.
    _C.MULTI_LABEL_LOSS = "soft_targets"
    # Segmentation: side of the windows and their distance, in pixels of the resized image (short
    # side INPUT.MIN_SIZE_TEST).
    _C.WINDOW_TEST = 448
    _C.STRIDE_TEST = 224
    # Classes that a window may have, the best of its image embedding.
    _C.TOP_CLASSES_TEST = 5
    # If the vocabulary has "background": probability of a segment's best class below which it is
    # background; a window in which no segment reaches it takes the largest there is instead.
    # Released models: 0.95 on Pascal VOC and COCO-Object, 0.35 on Pascal Context.
    _C.BACKGROUND_THRESH_TEST = 0.95
    # Classification: IMAGE_SIZE over the shorter side, of which the centre is seen.
    _C.CROP_SHARE_TEST = 0.875
