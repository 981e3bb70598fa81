"""Cosines of pixel and word embeddings, scaled.

Letters: N images, K words, D embedding width, h and w sides of the map.

Source: Li et al. 2022, "Language-driven Semantic Segmentation", section 3 and its public code.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-6  # smallest norm that is divided by


def word_pixel_correlation(
    pixels: Tensor, words: Tensor, scale: float, *, half: bool = False
) -> Tensor:
    """``scale * cosine`` of every pixel with every word.

    Where a vector is shorter than 1e-6 it is divided by 1e-6 and not by its norm: a zero vector has
    the logits 0 (the public code gives nan).

    Args:
        pixels: (N, D, h, w) float, any norm.
        words: (K, D), the same for all images, or (N, K, D) float, any norm.
        scale: factor on the cosine; no exp applied.
        half: round as the public code does on a GPU, where CLIP computes in half precision: the
            unit vectors, the scale and its product with the pixels, the words' norms, and the
            result. Sums are fp32.

    Returns:
        (N, K, h, w) fp32, under autocast too.
    """
    with torch.autocast(pixels.device.type, enabled=False):
        pixels, words = pixels.float(), words.float()
        if half:
            words = _rounded(words)
            norms = torch.linalg.vector_norm(words, dim=-1, keepdim=True).clamp(min=EPSILON)
            words = _rounded(words / _rounded(norms))
            rounded_scale = float(torch.tensor(scale, dtype=torch.float16))
            pixels = _rounded(_rounded(unit_pixels(pixels)) * rounded_scale)
            return _rounded(_products(words, pixels))
        return unit_pixel_correlation(unit_pixels(pixels), words, scale)


def unit_pixels(pixels: Tensor) -> Tensor:
    """(N, D, h, w) of any norm -> the same, fp32, of norm 1 (or shorter, see above)."""
    return F.normalize(pixels.float(), dim=1, eps=EPSILON)


def unit_pixel_correlation(pixels: Tensor, words: Tensor, scale: float) -> Tensor:
    """As :func:`word_pixel_correlation`, of pixels that have their norm: linear in them.

    Args:
        pixels: (N, D, h, w) fp32, of :func:`unit_pixels`, or resized, or sums of such.
        words: see there.
        scale: see there.

    Returns:
        (N, K, h, w) fp32.
    """
    with torch.autocast(pixels.device.type, enabled=False):
        return _products(F.normalize(words.float(), dim=-1, eps=EPSILON), pixels) * scale


def _products(words: Tensor, pixels: Tensor) -> Tensor:
    return (words @ pixels.flatten(2)).unflatten(2, pixels.shape[2:])


def _rounded(x: Tensor) -> Tensor:
    return x.half().float()
