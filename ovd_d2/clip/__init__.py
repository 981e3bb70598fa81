"""Image and text in one space: CLIP-like models behind one interface."""

from ovd_d2.clip.image_text_model import (
    ImagePreprocessing,
    ImageTextModel,
    build_image_text_model,
)

__all__ = ["ImagePreprocessing", "ImageTextModel", "build_image_text_model"]
