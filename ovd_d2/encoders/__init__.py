"""Image and text in one space: encoders of words, and CLIP-like models, behind one interface."""

from . import exported, huggingface, open_clip, openai_clip
from .caption_tokenizer import CaptionTokenizer
from .image_text_model import ImagePreprocessing, ImageTextModel
from .region_encoder import CROP_RULES, CropRegionEncoder
from .registry import (
    EncoderScheme,
    build_image_text_model,
    build_text_encoder,
    register_encoder,
    text_encoder_id,
)
from .text_encoder import TextEncoder

register_encoder("openai-clip", openai_clip.SCHEME)
register_encoder("open_clip", open_clip.SCHEME)
register_encoder("hf", huggingface.SCHEME)
register_encoder("minilm", huggingface.MINILM)
register_encoder("mini-teacher", exported.PACKAGED)
register_encoder("exported", exported.SCHEME)

__all__ = [
    "CROP_RULES",
    "CaptionTokenizer",
    "CropRegionEncoder",
    "EncoderScheme",
    "ImagePreprocessing",
    "ImageTextModel",
    "TextEncoder",
    "build_image_text_model",
    "build_text_encoder",
    "register_encoder",
    "text_encoder_id",
]
