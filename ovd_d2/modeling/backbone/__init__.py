"""Backbones."""

from .group_vit import GroupedImages, GroupViTEncoder
from .swin_fpn import build_retinanet_swin_fpn_backbone
from .timm_fpn import (
    TimmBackbone,
    build_retinanet_timm_fpn_backbone,
    build_timm_backbone,
    build_timm_fpn_backbone,
)
from .timm_vit import TimmViTPyramid, build_timm_vit_backbone

__all__ = [
    "GroupViTEncoder",
    "GroupedImages",
    "TimmBackbone",
    "TimmViTPyramid",
    "build_retinanet_swin_fpn_backbone",
    "build_retinanet_timm_fpn_backbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
    "build_timm_vit_backbone",
]
