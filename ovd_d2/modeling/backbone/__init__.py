"""Backbones."""

from .timm_fpn import TimmBackbone, build_timm_fpn_backbone

__all__ = ["TimmBackbone", "build_timm_fpn_backbone"]
