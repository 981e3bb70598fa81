"""Attention that looks at a few learned places of several feature maps.

Letters: N images, Q queries, C width, M heads, D = C / M, L levels, K points of a head on a level,
S = sum of h * w over the levels: maps are flattened row by row, the finest level first.

Source: Zhu et al. 2021, "Deformable DETR: Deformable Transformers for End-to-End Object Detection",
equation 3.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovd_d2.errors import OVDError

Sizes = Sequence[tuple[int, int]]  # (h, w) of each level


def sample_levels(value: Tensor, sizes: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of bilinear samples; outside of a map is 0.

    Args:
        value: (N, S, M, D).
        sizes: (h, w) of each of the L levels.
        locations: (N, Q, M, L, K, 2) x, y; 0..1 from border to border of a level's map.
        weights: (N, Q, M, L, K).

    Returns:
        (N, Q, M * D); the channels of a head are next to each other.
    """
    number, _, heads, width = value.shape
    queries = locations.shape[1]
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (N M, Q, L, K, 2)
    sampled = []
    for level, part in enumerate(value.split([h * w for h, w in sizes], dim=1)):
        image = part.permute(0, 2, 3, 1).reshape(number * heads, width, *sizes[level])
        sampled.append(F.grid_sample(image, grids[:, :, level], align_corners=False))
    factors = weights.transpose(1, 2).reshape(number * heads, 1, queries, -1)
    found = (torch.stack(sampled, dim=-2).flatten(-2) * factors).sum(dim=-1)  # (N M, D, Q)
    return found.view(number, heads * width, queries).transpose(1, 2)


class DeformableAttention(nn.Module):
    """Every head of a query takes K samples of each level around a reference; where, and how much
    each counts (a softmax over all L * K), are linear functions of the query."""

    def __init__(self, dim: int, *, heads: int = 8, levels: int = 4, points: int = 4) -> None:
        """
        Args:
            dim: C.
            heads: M; divides C.
            levels: L.
            points: K.

        Raises:
            OVDError: M does not divide C.
        """
        super().__init__()
        if dim % heads:
            raise OVDError(f"heads is {heads}, which does not divide the width {dim}.")
        self.shape = heads, levels, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Head m looks along the angle 2 pi m / M, its point k at a distance of k + 1 cells; all
        samples count the same."""
        heads, levels, points = self.shape
        angles = torch.arange(heads) * (2 * math.pi / heads)
        rays = torch.stack([angles.cos(), angles.sin()], dim=-1)
        rays = rays / rays.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, points + 1)[:, None]
        offsets = (rays[:, None, None] * steps).expand(heads, levels, points, 2)
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        query: Tensor,
        references: Tensor,
        memory: Tensor,
        sizes: Sizes,
        padding: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            query: (N, Q, C).
            references: (N, Q, L, 2) x, y, or (N, Q, L, 4) cx, cy, w, h, 0..1 on the padded maps;
                offsets count in cells of a level, or in halves of the box over K.
            memory: (N, S, C).
            sizes: (h, w) of each level.
            padding: (N, S) bool, True on padding, whose values are 0; None: there is none.

        Returns:
            (N, Q, C).
        """
        heads, levels, points = self.shape
        value = self.value_proj(memory)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0.0)
        offsets = self.sampling_offsets(query).unflatten(-1, (heads, levels, points, 2))
        weights = self.attention_weights(query).unflatten(-1, (heads, levels * points))
        weights = weights.softmax(dim=-1).unflatten(-1, (levels, points))
        centres = references[:, :, None, :, None, :2]
        if references.shape[-1] == 2:
            cells = offsets.new_tensor([(w, h) for h, w in sizes])[:, None]
            locations = centres + offsets / cells
        else:
            boxes = references[:, :, None, :, None, 2:]
            locations = centres + offsets / points * boxes * 0.5
        value = value.unflatten(-1, (heads, -1))
        return self.output_proj(sample_levels(value, sizes, locations, weights))
