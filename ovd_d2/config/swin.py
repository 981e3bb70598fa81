"""Keys of Swin backbones: MODEL.SWIN."""

from detectron2.config import CfgNode as CN

from ovd_d2.config.rules import BELOW_1, COUNT, Rows, each, whole

RULES: Rows = (  # rule, prefix, keys below it
    (COUNT, "MODEL.SWIN.", "EMBED_DIM WINDOW_SIZE"),
    (BELOW_1, "MODEL.SWIN.", "DROP_PATH_RATE"),
    (each(COUNT, 4), "MODEL.SWIN.", "DEPTHS NUM_HEADS"),
    (whole(-1), "MODEL.SWIN.", "FREEZE_STAGES"),
)  # fmt: skip


def add_keys(cfg: CN) -> None:
    """Adds the group to ``cfg``, in place."""
    # For MODEL.BACKBONE.NAME build_retinanet_swin_fpn_backbone; the values are Swin-T's.
    _C = cfg.MODEL.SWIN = CN()
    # Channels of the first stage, doubled by each; Swin-L: 192.
    _C.EMBED_DIM = 96
    # Blocks and attention heads per stage; Swin-L: [2, 2, 18, 2] and [6, 12, 24, 48].
    _C.DEPTHS = [2, 2, 6, 2]
    _C.NUM_HEADS = [3, 6, 12, 24]
    # Side of an attention window in tokens; Swin-L: 12.
    _C.WINDOW_SIZE = 7
    # Stochastic depth of the last block, growing linearly from 0 (GLIP: T 0.2, L 0.4).
    _C.DROP_PATH_RATE = 0.2
    # Detectron2's count: -1 none, 0 or 1 the patch embedding, 2 the first stage too, ...
    _C.FREEZE_STAGES = -1
    # Recompute activations in the backward pass, for memory.
    _C.CHECKPOINT = False
    # ImageNet weights (.pth of the public release, or .safetensors); "" random.
    _C.WEIGHTS = ""
