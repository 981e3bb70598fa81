"""Keys of the image-text model of Radford et al. 2021: MODEL.CLIP."""

from detectron2.config import CfgNode as CN

from ovd_d2.config.rules import ABOVE_0, COUNT, Rows, each, one_of

RULES: Rows = (  # rule, prefix, keys below it
    (each(COUNT), "MODEL.CLIP.", "RESNET.LAYERS"),
    (COUNT, "MODEL.CLIP.",
     "IMAGE_SIZE EMBED_DIM VIT.PATCH VIT.WIDTH VIT.LAYERS RESNET.WIDTH TEXT.WIDTH TEXT.HEADS "
     "TEXT.LAYERS TEXT.CONTEXT"),
    (ABOVE_0, "MODEL.CLIP.", "LOGIT_SCALE_MAX"),
    (one_of("crop", "squash"), "MODEL.CLIP.", "RESIZE"),
)  # fmt: skip


def add_keys(cfg: CN) -> None:
    """Adds the group to ``cfg``, in place."""
    # For MODEL.META_ARCHITECTURE CLIP (Radford et al. 2021).
    _C = cfg.MODEL.CLIP = CN()
    # "timm" (any timm model + projection), "clip_vit" or "clip_resnet" (those of CLIP).
    _C.IMAGE_TOWER = "clip_vit"
    # Side of the image tower's square input in pixels; MODEL.PIXEL_MEAN and PIXEL_STD apply.
    _C.IMAGE_SIZE = 224
    # How other images get that size: "crop" (shorter side, then centre crop) or "squash".
    _C.RESIZE = "crop"
    # D, the width of the common space.
    _C.EMBED_DIM = 512
    # For "timm": model name, and weights as in MODEL.TIMM.WEIGHTS.
    _C.TIMM = CN({"NAME": "resnet50", "WEIGHTS": ""})
    # For "clip_vit": patch side, transformer width (64 per head) and blocks; default ViT-B/32.
    _C.VIT = CN({"PATCH": 32, "WIDTH": 768, "LAYERS": 12})
    # For "clip_resnet": blocks per stage and channels after the stem; default RN50.
    _C.RESNET = CN({"LAYERS": [3, 4, 6, 3], "WIDTH": 64})
    # "transformer" (CLIP's, trained from random weights), "locked:ENCODER" (LiT, Zhai et al. 2022;
    # ENCODER as OPEN_VOCAB.TEXT_ENCODER) or "trained:ENCODER" (minilm or hf:... fine-tuned).
    _C.TEXT_TOWER = "transformer"
    # For "transformer": width, attention heads, blocks, most tokens of a caption.
    _C.TEXT = CN({"WIDTH": 512, "HEADS": 8, "LAYERS": 12, "CONTEXT": 77})
    # Activation checkpointing: what is inside the blocks of "clip_vit", "clip_resnet" and
    # "transformer" is computed again in the backward pass instead of being kept. Less memory, one
    # more forward pass, the same gradients.
    _C.CHECKPOINT = False
    # Factor on the cosine: first value, and the largest it may learn.
    _C.LOGIT_SCALE_INIT = 1 / 0.07
    _C.LOGIT_SCALE_MAX = 100.0
    # Parameters that keep their first values: patterns ("*" is anything) of their full names.
    _C.FREEZE = []
    # Pairs with the same caption are no negatives of each other (CLIP: they are).
    _C.IGNORE_EQUAL_CAPTIONS = False
