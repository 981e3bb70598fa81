"""Whole models that Detectron2's META_ARCHITECTURE names."""

from .clip import CLIP

__all__ = ["CLIP"]
