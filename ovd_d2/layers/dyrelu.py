"""Dynamic ReLU (Chen et al. 2020, arXiv 2003.10027), two linear pieces per channel.

Letters: N images, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DyReLU(nn.Module):
    """``max(a1 x + b1, a2 x + b2)``, all four predicted per image and channel (variant B).

    From the global average of the input, two linear layers and a hard sigmoid g: a1 = 2 g,
    b1 = g - 0.5, a2 = 2 g - 1, b2 = g - 0.5. Where every g is 0.5 it is a ReLU.
    """

    def __init__(self, channels: int, *, reduction: int = 4) -> None:
        """
        Args:
            channels: C.
            reduction: the hidden layer has C / reduction units.
        """
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // reduction)
        self.excite = nn.Linear(channels // reduction, 4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        gates = F.hardsigmoid(self.excite(F.relu(self.squeeze(x.mean(dim=(2, 3))))))
        slope1, shift1, slope2, shift2 = gates[..., None, None].chunk(4, dim=1)
        first = x * (2 * slope1) + (shift1 - 0.5)
        return torch.maximum(first, x * (2 * slope2 - 1) + (shift2 - 0.5))
