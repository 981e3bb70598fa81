"""Keys of language-driven semantic segmentation (Li et al. 2022, "LSeg"): MODEL.LSEG."""

from detectron2.config import CfgNode as CN

from ovd_d2.config.rules import ABOVE_0, COUNT, COUNT_OR_0, NAMES, NORM, Rows, each, one_of

RULES: Rows = (  # rule, prefix, keys below it
    (NAMES, "MODEL.LSEG.", "IN_FEATURES"),
    (COUNT, "MODEL.LSEG.", "WIDTH REGULARISER.DEPTH TEST.STRIDE TEST.BASE_SIZE"),
    (NORM, "MODEL.LSEG.", "NORM"),
    (ABOVE_0, "MODEL.LSEG.", "TEMPERATURE"),
    (one_of("", "bottleneck", "depthwise"), "MODEL.LSEG.", "REGULARISER.KIND"),
    (one_of("relu", "lrelu", "tanh"), "MODEL.LSEG.", "REGULARISER.ACTIVATION"),
    (COUNT_OR_0, "MODEL.LSEG.", "TEST.WINDOW"),
    (each(ABOVE_0), "MODEL.LSEG.", "TEST.SCALES"),
)  # fmt: skip


def add_keys(cfg: CN) -> None:
    """Adds the group to ``cfg``, in place."""
    # For MODEL.META_ARCHITECTURE LSeg. Words are MODEL.OPEN_VOCAB's (PROMPTS "name": the bare
    # words), pixels without a class MODEL.SEM_SEG_HEAD.IGNORE_VALUE.
    _C = cfg.MODEL.LSEG = CN()
    # Feature maps, finest first, each of twice the stride of the one before: those of
    # MODEL.BACKBONE.NAME build_timm_vit_backbone (a plain ViT) or build_timm_backbone with
    # MODEL.TIMM.OUT_STRIDES [4, 8, 16, 32] (a convolutional network).
    _C.IN_FEATURES = ["stride4", "stride8", "stride16", "stride32"]
    # Channels of the decoder, and the norm in its fusion blocks ("": none).
    _C.WIDTH = 256
    _C.NORM = "BN"
    # Logits are cosine / TEMPERATURE, which is fixed.
    _C.TEMPERATURE = 0.07
    # Round vectors and logits to half precision as the public code does on a GPU (a factor of
    # 14.2890625 instead of 14.2857); for its weights, to the last digit.
    _C.HALF_CORRELATION = False
    # Smoothing of the label maps: "" (the released models), "bottleneck" or "depthwise"; how often
    # the one block is applied, and what is between two times: "relu", "lrelu" or "tanh".
    _C.REGULARISER = CN()
    _C.REGULARISER.KIND = ""
    _C.REGULARISER.DEPTH = 1
    _C.REGULARISER.ACTIVATION = "lrelu"
    # Test: side of the windows in pixels (0: the whole image as the mapper gives it, once); with
    # windows, the long side becomes BASE_SIZE times each of SCALES, STRIDE is the way from one
    # window to the next, and FLIP adds the mirrored windows. Scores are added.
    _C.TEST = CN()
    _C.TEST.WINDOW = 0
    _C.TEST.STRIDE = 320
    _C.TEST.BASE_SIZE = 520
    _C.TEST.SCALES = [1.0]
    _C.TEST.FLIP = False
