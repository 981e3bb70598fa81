"""Classifiers whose classes are embeddings."""

from .embedding_classifier import EmbeddingClassifier
from .pixel_classifier import PixelClassifier
from .projections import build_projection, linear_projection
from .weight_transfer import WeightTransferProjection

__all__ = [
    "EmbeddingClassifier",
    "PixelClassifier",
    "WeightTransferProjection",
    "build_projection",
    "linear_projection",
]
