"""Positions in images as sines and cosines.

Letters: N images, C channels, H, W size of a map.

Source: Carion et al. 2020, "End-to-End Object Detection with Transformers", appendix A.4, with
positions normalised by the size of the image without padding.
"""

import math

import torch
from torch import Tensor


def sine_positions(padding: Tensor, dim: int, temperature: float = 10000.0) -> Tensor:
    """(N, C, H, W) fp32; the first half of the channels is of y, the second of x.

    Cells of the image count 1, 2, ... and are divided by the last number; 2 pi is a whole image.
    Channel j of a half has the frequency ``temperature ** (-2 * (j // 2) / (C / 2))``, even ones a
    sine, odd ones a cosine.

    Args:
        padding: (N, H, W) bool, True on padding.
        dim: C, a multiple of 4.
        temperature: see above.
    """
    inside = (~padding).float()
    half = dim // 2
    exponents = torch.arange(half, device=padding.device).div(2, rounding_mode="floor")
    periods = temperature ** (2 * exponents / half)
    parts = []
    for axis in (1, 2):
        count = inside.cumsum(dim=axis)
        last = count.narrow(axis, count.shape[axis] - 1, 1)
        angles = (count / (last + 1e-6) * (2 * math.pi))[..., None] / periods
        waves = torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1)
        parts.append(waves.flatten(-2))
    return torch.cat(parts, dim=-1).permute(0, 3, 1, 2)
