"""The decoder of DPT: four feature maps to one, from coarse to fine.

Letters: N images, C channels, H and W sides of the input.

Sources: Ranftl et al. 2021, "Vision Transformers for Dense Prediction", section 3 (Fusion); its
blocks are those of Lin et al. 2017, "RefineNet".
"""

from collections.abc import Sequence

from detectron2.layers import get_norm
from torch import Tensor, nn
from torch.nn import functional as F

from ovd_d2.errors import OVDError


class ResidualUnit(nn.Module):
    """x + norm(conv(relu(norm(conv(relu(x)))))), two 3x3 convolutions, with a bias if there is no
    norm. (N, C, h, w) -> the same."""

    def __init__(self, channels: int, norm: str = "BN") -> None:
        """
        Args:
            channels: C.
            norm: Detectron2's name of it; "": none.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=not norm)
        self.norm1 = get_norm(norm, channels) or nn.Identity()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=not norm)
        self.norm2 = get_norm(norm, channels) or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(F.relu(x)))
        return x + self.norm2(self.conv2(F.relu(y)))


class FusionBlock(nn.Module):
    """Adds a finer level to what comes from the coarser ones, refines it, doubles its sides
    (bilinear, corners aligned) and projects it (1x1). The coarsest level's block has one input."""

    def __init__(self, channels: int, norm: str = "BN", *, coarsest: bool = False) -> None:
        """
        Args:
            channels: C, of all inputs and of the output.
            norm: see :class:`ResidualUnit`.
            coarsest: nothing comes from coarser levels.
        """
        super().__init__()
        self.level_unit = None if coarsest else ResidualUnit(channels, norm)
        self.unit = ResidualUnit(channels, norm)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, level: Tensor | None = None) -> Tensor:
        """
        Args:
            x: (N, C, h, w) of the coarser levels, or the coarsest level itself.
            level: (N, C, h, w); None for the coarsest.

        Returns:
            (N, C, 2h, 2w).
        """
        if level is not None:
            x = x + self.level_unit(level)
        x = self.unit(x)
        return self.out(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True))


class DPTDecoder(nn.Module):
    """Maps of stride 4, 8, 16 and 32, of a ViT or of a convolutional network -> one of stride 2.

    A 3x3 convolution without bias brings every level to C channels; then a :class:`FusionBlock`
    per level, from the coarsest to the finest.
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 256, norm: str = "BN") -> None:
        """
        Args:
            in_channels: of the levels, finest first.
            channels: C.
            norm: of the fusion blocks, see :class:`ResidualUnit`.
        """
        super().__init__()
        self.channels = channels
        self.adapt = nn.ModuleList(
            nn.Conv2d(c, channels, 3, padding=1, bias=False) for c in in_channels
        )
        last = len(in_channels) - 1
        self.fuse = nn.ModuleList(
            FusionBlock(channels, norm, coarsest=place == last) for place in range(last + 1)
        )

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """
        Args:
            levels: (N, in_channels, H / stride, W / stride), finest first; each is twice as large
                as the next.

        Returns:
            (N, C, H / 2, W / 2) for levels that begin with stride 4.

        Raises:
            OVDError: sizes that do not fit.
        """
        x: Tensor | None = None
        for level, adapt, fuse in zip(levels[::-1], self.adapt[::-1], self.fuse[::-1]):
            level = adapt(level)
            if x is None:
                x = fuse(level)
                continue
            if x.shape != level.shape:
                raise OVDError(
                    f"feature maps of {tuple(level.shape[-2:])} and {tuple(x.shape[-2:])} meet in "
                    "the decoder: pad the sides of the input to multiples of the largest stride."
                )
            x = fuse(x, level)
        return x
