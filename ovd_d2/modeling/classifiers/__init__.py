"""Classifiers whose classes are embeddings."""

from .embedding_classifier import EmbeddingClassifier

__all__ = ["EmbeddingClassifier"]
