"""Maps of a backbone as levels of one width.

Letters: N images, C width, L levels.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ovd_d2.errors import OVDError


class FeatureLevels(nn.Module):
    """Each map by a 1 x 1 convolution and group norm; further levels by 3 x 3 convolutions of
    stride 2, the first of the backbone's last map, any other of the level before (Zhu et al. 2021,
    "Deformable DETR", appendix A.4)."""

    def __init__(
        self, channels: Sequence[int], *, dim: int = 256, levels: int = 4, norm_groups: int = 32
    ) -> None:
        """
        Args:
            channels: of the backbone's maps, finest first.
            dim: C.
            levels: L, at least as many as maps.
            norm_groups: groups of each norm; divides C.

        Raises:
            OVDError: fewer levels than maps, or groups that do not divide the width.
        """
        super().__init__()
        if levels < len(channels):
            raise OVDError(f"levels is {levels}, but there are {len(channels)} feature maps.")
        if dim % norm_groups:
            raise OVDError(f"norm_groups is {norm_groups}, which does not divide the width {dim}.")
        self.projections = nn.ModuleList()
        for level in range(levels):
            if level < len(channels):
                layer = nn.Conv2d(channels[level], dim, 1)
            else:
                before = channels[-1] if level == len(channels) else dim
                layer = nn.Conv2d(before, dim, 3, stride=2, padding=1)
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
            self.projections.append(nn.Sequential(layer, nn.GroupNorm(norm_groups, dim)))

    def forward(self, maps: Sequence[Tensor], padding: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """
        Args:
            maps: the backbone's, (N, *, h, w) each.
            padding: (N, H, W) bool of the images, True on padding.

        Returns:
            per level its map (N, C, h, w) and its padding (N, h, w) bool.
        """
        found: list[Tensor] = []
        for level, projection in enumerate(self.projections):
            if level < len(maps):
                found.append(projection(maps[level]))
            else:
                found.append(projection(maps[-1] if level == len(maps) else found[-1]))
        grey = padding[:, None].float()
        paddings = [F.interpolate(grey, size=one.shape[-2:])[:, 0] > 0 for one in found]
        return found, paddings
