"""Image and text meet before the head's outputs."""

from .cross_attention import CrossAttention
from .late_fusion import LateFusion
from .text_layer import text_layer

__all__ = ["CrossAttention", "LateFusion", "text_layer"]
