"""Sentences to unit vectors: what every text encoder offers, and the batching most of them share.

Letters: L sentences, D embedding width.
"""

import logging
from abc import ABC, abstractmethod
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

_BATCH = 256


@runtime_checkable
class TextEncoder(Protocol):
    """Turns sentences into unit vectors.

    Attributes:
        encoder_id: kind of model and digest of its weights, "NAME@12 HEX DIGITS". Encoders that
            share it give the same vectors, whatever path they were loaded from.
        dim: D.
    """

    encoder_id: str
    dim: int

    def encode(self, texts: list[str]) -> Tensor:
        """Embeds L sentences: (L, D) fp32 on the CPU, rows of L2 norm 1, without gradient.

        Over-long sentences are cut at the model's context length, with a logged warning.
        """
        ...


class BatchedTextEncoder(ABC):
    """A ``TextEncoder`` over a tower that pads: sentences of one length share a batch.

    Attributes:
        max_tokens: the longest sentence that is read whole, in the unit of ``token_counts``.
        warns_of_cuts: whether a longer one is worth a warning.
    """

    warns_of_cuts = True

    encoder_id: str
    dim: int
    max_tokens: int

    def cut_at(self, tokens: int) -> None:
        """Reads at most ``tokens`` of a sentence from now on, on purpose: without a warning."""
        self.max_tokens = min(self.max_tokens, tokens)
        self.warns_of_cuts = False

    @abstractmethod
    def token_counts(self, texts: list[str]) -> Tensor:
        """(L,) int64, before anything is cut."""

    @abstractmethod
    def features(self, texts: list[str]) -> Tensor:
        """(L, D) fp32, not normalised, on the model's device, with gradient; for training."""

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        """As ``TextEncoder``."""
        if not texts:
            return torch.zeros(0, self.dim)
        lengths = self.token_counts(texts)
        if self.warns_of_cuts and (lengths > self.max_tokens).any():
            logger.warning("Some texts are longer than %d tokens and were cut.", self.max_tokens)
        features = torch.empty(len(texts), self.dim)
        for rows in lengths.clamp(max=self.max_tokens).argsort().split(_BATCH):
            features[rows] = self.features([texts[row] for row in rows]).cpu()
        return nn.functional.normalize(features, dim=1)
