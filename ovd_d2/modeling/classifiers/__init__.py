"""Classifiers whose classes are embeddings."""

from .embedding_classifier import EmbeddingClassifier
from .projections import build_projection, linear_projection
from .weight_transfer import WeightTransferProjection

__all__ = [
    "EmbeddingClassifier",
    "WeightTransferProjection",
    "build_projection",
    "linear_projection",
]
