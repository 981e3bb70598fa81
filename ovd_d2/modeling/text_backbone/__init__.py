"""Text backbones: captions to one feature per token, trained along with a detector."""

from .huggingface import HuggingFaceTextBackbone
from .registry import TEXT_BACKBONE_REGISTRY, build_text_backbone

__all__ = ["TEXT_BACKBONE_REGISTRY", "HuggingFaceTextBackbone", "build_text_backbone"]
