"""From the tokens of a plain ViT to a pyramid of feature maps.

Letters: N images, L tokens without the class token (L = h * w), D token width, C channels.

Source: Ranftl et al. 2021, "Vision Transformers for Dense Prediction", section 3 (Reassemble).
"""

import torch
from torch import Tensor, nn

from ovd_d2.errors import OVDError

READOUTS = ("project", "add", "ignore")
STRIDES = (4, 8, 16, 32)


class Readout(nn.Module):
    """Folds the class token into the others: (N, 1 + L, D), class token first -> (N, L, D).

    "project": linear layer from [token, class token] to D and an exact GELU; "add": their sum;
    "ignore": the tokens alone.
    """

    def __init__(self, width: int, kind: str = "project") -> None:
        """
        Args:
            width: D.
            kind: see the class.

        Raises:
            OVDError: another kind.
        """
        super().__init__()
        if kind not in READOUTS:
            choices = " or ".join(map(repr, READOUTS))
            raise OVDError(f"MODEL.TIMM.VIT.READOUT is {kind!r}; it must be {choices}.")
        self.kind = kind
        if kind == "project":
            self.project = nn.Linear(2 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        patches = tokens[:, 1:]
        if self.kind == "ignore":
            return patches
        first = tokens[:, :1]
        if self.kind == "add":
            return patches + first
        both = torch.cat([patches, first.expand_as(patches)], dim=2)
        return nn.functional.gelu(self.project(both))


class Reassemble(nn.Module):
    """One level: read-out, 1x1 convolution to C channels, and a change of resolution: a transposed
    convolution where patches are larger than the stride, a strided one where they are smaller."""

    def __init__(
        self, width: int, channels: int, *, patch: int, stride: int, readout: str = "project"
    ) -> None:
        """
        Args:
            width: D.
            channels: C.
            patch: side of a patch in pixels.
            stride: of the map, in pixels; ``patch`` is a multiple of it, or half of it.
            readout: see :class:`Readout`.
        """
        super().__init__()
        self.readout = Readout(width, readout)
        self.reduce = nn.Conv2d(width, channels, 1)
        factor = patch // stride
        if factor > 1:
            self.resize = nn.ConvTranspose2d(channels, channels, factor, stride=factor)
        elif patch == stride:
            self.resize = nn.Identity()
        else:
            self.resize = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(N, 1 + h * w, D) and (h, w) -> (N, C, H / stride, W / stride)."""
        patches = self.readout(tokens).transpose(1, 2)
        return self.resize(self.reduce(patches.unflatten(2, grid)))
