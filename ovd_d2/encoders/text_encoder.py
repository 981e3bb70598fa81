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
_LEAST = 4  # texts that a tower reads together


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
    """A ``TextEncoder`` over a tower that pads: only sentences of one length share a batch, and no
    batch is tiny, so that a sentence's vector does not depend on what it is encoded with. On CPU
    that holds bit by bit: matrices of few rows, and padded ones, are rounded in another way.

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
        lengths = lengths.clamp(max=self.max_tokens)
        features = torch.empty(len(texts), self.dim)
        for length in lengths.unique():
            for rows in (lengths == length).nonzero()[:, 0].split(_BATCH):
                batch = [texts[row] for row in rows]
                batch += batch[:1] * (_LEAST - len(batch))
                features[rows] = self.features(batch)[: len(rows)].cpu()
        return nn.functional.normalize(features, dim=1)
