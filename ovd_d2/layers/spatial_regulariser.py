"""Smooths the maps of labels without knowing which labels they are.

Letters: N images, K labels, h and w sides of the map.

Source: Li et al. 2022, "Language-driven Semantic Segmentation", section 3 (spatial regularization
blocks) and its public code.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovd_d2.errors import OVDError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "lrelu": F.leaky_relu,  # slope 0.01
    "tanh": torch.tanh,
}
KINDS = ("bottleneck", "depthwise")


class SpatialRegulariser(nn.Module):
    """One block, applied ``depth`` times with the same weights, the last time without activation.

    "depthwise" filters every label's map with one and the same 3x3 kernel; "bottleneck" adds the
    maximum over the labels of what comes in to every map. Both take any number of labels, and in
    another order the labels' maps come out in that order.
    """

    def __init__(self, kind: str, *, depth: int = 1, activation: str = "lrelu") -> None:
        """
        Args:
            kind: see the class.
            depth: applications, 1 or more.
            activation: between them: "relu", "lrelu" or "tanh".

        Raises:
            OVDError: another kind, depth or activation.
        """
        super().__init__()
        if kind not in KINDS or activation not in ACTIVATIONS or depth < 1:
            raise OVDError(
                f"A spatial regulariser {kind!r} of depth {depth} with {activation!r} is none: "
                f"give {' or '.join(KINDS)}, 1 or more, and {' or '.join(ACTIVATIONS)} "
                "(MODEL.LSEG.REGULARISER)."
            )
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.adds_maximum = kind == "bottleneck"
        self.depth = depth
        self.activation = ACTIVATIONS[activation]

    def block(self, x: Tensor) -> Tensor:
        """One application without activation, (N, K, h, w) -> the same."""
        y = self.conv(x.flatten(0, 1)[:, None]).view_as(x)
        return y + x.amax(dim=1, keepdim=True) if self.adds_maximum else y

    def forward(self, x: Tensor) -> Tensor:
        """(N, K, h, w) logits of labels -> the same."""
        for _ in range(self.depth - 1):
            x = self.activation(self.block(x))
        return self.block(x)
