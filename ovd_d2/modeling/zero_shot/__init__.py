"""Zero-shot detectors of transformers, a class per family, as parts of a meta-architecture."""

from .family import ImageBatch, Scored, TextGroup, ZeroShotFamily
from .grounding_dino import GroundingDinoFamily
from .omdet_turbo import OmDetTurboFamily
from .owl import OwlFamily

FAMILIES: dict[str, type[ZeroShotFamily]] = {
    "grounding-dino": GroundingDinoFamily,
    "omdet-turbo": OmDetTurboFamily,
    "owl": OwlFamily,
}
"""By ``ZeroShotFacts.family``."""

__all__ = ["FAMILIES", "ImageBatch", "Scored", "TextGroup", "ZeroShotFamily"]
