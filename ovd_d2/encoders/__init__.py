"""Image and text in one space: encoders of words, and CLIP-like models, behind one interface."""

from .image_text_model import ImagePreprocessing, ImageTextModel, build_image_text_model
from .region_encoder import CROP_RULES, CropRegionEncoder
from .registry import (
    TextEncoder,
    TextEncoderScheme,
    build_text_encoder,
    register_text_encoder,
    text_encoder_id,
)

__all__ = [
    "CROP_RULES",
    "CropRegionEncoder",
    "ImagePreprocessing",
    "ImageTextModel",
    "TextEncoder",
    "TextEncoderScheme",
    "build_image_text_model",
    "build_text_encoder",
    "register_text_encoder",
    "text_encoder_id",
]
