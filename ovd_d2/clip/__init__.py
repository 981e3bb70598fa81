"""Image and text in one space: CLIP-like models behind one interface."""

from ovd_d2.clip.image_text_model import (
    ImagePreprocessing,
    ImageTextModel,
    build_image_text_model,
)
from ovd_d2.clip.region_encoder import CROP_RULES, CropRegionEncoder

__all__ = [
    "CROP_RULES",
    "CropRegionEncoder",
    "ImagePreprocessing",
    "ImageTextModel",
    "build_image_text_model",
]
