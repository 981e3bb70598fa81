"""Encoder and decoder with deformable attention: feature maps of an image to a fixed number of
object queries.

Letters: N images, Q object queries, C width, L levels, S = sum of h * w over the levels, which are
flattened row by row, the finest first. Paddings are bool, True on padding.

Source: Zhu et al. 2021, "Deformable DETR", sections 4.1 and A.3, in the form of MAVL: references
stay as they are from layer to layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovd_d2.layers.deformable_attention import DeformableAttention, Sizes
from ovd_d2.layers.sine_positions import sine_positions


@dataclass(frozen=True)
class ImageQueries:
    """What the decoder has found in N images.

    Attributes:
        layers: (D, N, Q, C) object queries after each decoder layer that is kept, the last one
            last.
        references: (N, Q, 2) x, y in 0..1 of the image without padding.
    """

    layers: Tensor
    references: Tensor

    def __len__(self) -> int:
        """N."""
        return self.layers.shape[1]


def valid_ratios(padding: Tensor) -> Tensor:
    """(N, 2) x, y: the share of columns and rows of (N, H, W) that are not padding."""
    inside = (~padding).float()
    return torch.stack([inside[:, 0].mean(dim=1), inside[:, :, 0].mean(dim=1)], dim=-1)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """The logit of x in [0, 1], both sides of the quotient at least ``eps``."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def cell_references(sizes: Sizes, ratios: Tensor) -> Tensor:
    """The centre of every cell as a reference on every level.

    Args:
        sizes: (h, w) of each level.
        ratios: (N, L, 2) :func:`valid_ratios` of each level.

    Returns:
        (N, S, L, 2) x, y, 0..1 on the padded maps.
    """
    of_levels = []
    for level, (height, width) in enumerate(sizes):
        y = torch.arange(0.5, height, device=ratios.device)
        x = torch.arange(0.5, width, device=ratios.device)
        cells = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)
        of_levels.append(cells / (ratios[:, level, None] * ratios.new_tensor([width, height])))
    return torch.cat(of_levels, dim=1)[:, :, None] * ratios[:, None]


class _FeedForward(nn.Module):
    """The hidden layer of a transformer layer, with its dropouts; the sum and the norm are the
    layer's."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def feed_forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(F.relu(self.linear1(x)))
        return self.dropout(self.linear2(hidden))


class EncoderLayer(_FeedForward):
    """Every cell attends to cells of all levels; post-norm."""

    def __init__(
        self, dim: int, *, heads: int, levels: int, points: int, hidden: int, dropout: float
    ) -> None:
        """
        Args:
            dim: C.
            heads: of the attention.
            levels: L.
            points: of a head on a level.
            hidden: units of the hidden layer.
            dropout: on both sums and the hidden units, in training.
        """
        super().__init__(dim, hidden, dropout)
        self.self_attn = DeformableAttention(dim, heads=heads, levels=levels, points=points)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(
        self, cells: Tensor, positions: Tensor, references: Tensor, sizes: Sizes, padding: Tensor
    ) -> Tensor:
        """(N, S, C) of (N, S, C) cells and positions, (N, S, L, 2) references, (N, S) padding."""
        found = self.self_attn(cells + positions, references, cells, sizes, padding)
        cells = self.norm1(cells + self.dropout(found))
        return self.norm2(cells + self.feed_forward(cells))


class DecoderLayer(_FeedForward):
    """Object queries attend to each other, then to the image; post-norm."""

    def __init__(
        self, dim: int, *, heads: int, levels: int, points: int, hidden: int, dropout: float
    ) -> None:
        """Arguments as of :class:`EncoderLayer`."""
        super().__init__(dim, hidden, dropout)
        self.cross_attn = DeformableAttention(dim, heads=heads, levels=levels, points=points)
        self.norm1 = nn.LayerNorm(dim)
        self.self_attn = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(
        self,
        queries: Tensor,
        positions: Tensor,
        references: Tensor,
        memory: Tensor,
        sizes: Sizes,
        padding: Tensor,
    ) -> Tensor:
        """(N, Q, C) of (N, Q, C) queries and positions, (N, Q, L, 2 or 4) references, (N, S, C)
        memory, (N, S) padding."""
        placed = queries + positions
        found = self.self_attn(placed, placed, queries, need_weights=False)[0]
        queries = self.norm2(queries + self.dropout(found))
        found = self.cross_attn(queries + positions, references, memory, sizes, padding)
        queries = self.norm1(queries + self.dropout(found))
        return self.norm3(queries + self.feed_forward(queries))


class DeformableTransformer(nn.Module):
    """L feature maps of width C -> :class:`ImageQueries`. It sees no text."""

    def __init__(
        self,
        *,
        dim: int = 256,
        queries: int = 300,
        heads: int = 8,
        levels: int = 4,
        points: int = 4,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        hidden: int = 1024,
        dropout: float = 0.1,
        all_layers: bool = False,
    ) -> None:
        """
        Args:
            dim: C.
            queries: Q.
            heads: of every attention.
            levels: L.
            points: of a head on a level.
            encoder_layers: their number.
            decoder_layers: their number.
            hidden: units of the hidden layers.
            dropout: in training.
            all_layers: keep the queries after every decoder layer, not the last one alone.
        """
        super().__init__()
        shape = {"heads": heads, "levels": levels, "points": points}
        shape |= {"hidden": hidden, "dropout": dropout}
        self.dim = dim
        self.all_layers = all_layers
        self.encoder = nn.ModuleList(EncoderLayer(dim, **shape) for _ in range(encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(dim, **shape) for _ in range(decoder_layers))
        self.level_embed = nn.Parameter(torch.empty(levels, dim))
        self.query_embed = nn.Embedding(queries, 2 * dim)
        self.reference_points = nn.Linear(dim, 2)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for parameter in (*self.encoder.parameters(), *self.decoder.parameters()):
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.reset_parameters()
        nn.init.normal_(self.level_embed)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(self, maps: Sequence[Tensor], paddings: Sequence[Tensor]) -> ImageQueries:
        """
        Args:
            maps: per level (N, C, h, w).
            paddings: per level (N, h, w) bool.
        """
        sizes = [tuple(one.shape[-2:]) for one in maps]
        padding = torch.cat([one.flatten(1) for one in paddings], dim=1)
        ratios = torch.stack([valid_ratios(one) for one in paddings], dim=1)
        memory = self.encode(maps, paddings, sizes, padding, ratios)
        return self.decode(memory, sizes, padding, ratios)

    def encode(
        self,
        maps: Sequence[Tensor],
        paddings: Sequence[Tensor],
        sizes: Sizes,
        padding: Tensor,
        ratios: Tensor,
    ) -> Tensor:
        """The image's memory, (N, S, C)."""
        cells = torch.cat([one.flatten(2).transpose(1, 2) for one in maps], dim=1)
        positions = torch.cat(
            [
                sine_positions(one, self.dim).flatten(2).transpose(1, 2) + self.level_embed[level]
                for level, one in enumerate(paddings)
            ],
            dim=1,
        )
        references = cell_references(sizes, ratios)
        for layer in self.encoder:
            cells = layer(cells, positions, references, sizes, padding)
        return cells

    def decode(self, memory: Tensor, sizes: Sizes, padding: Tensor, ratios: Tensor) -> ImageQueries:
        """Object queries of a memory (N, S, C)."""
        positions, queries = (
            half.expand(len(memory), -1, -1) for half in self.query_embed.weight.chunk(2, dim=1)
        )
        references = self.reference_points(positions).sigmoid()
        on_levels = references[:, :, None] * ratios[:, None]
        kept = []
        for layer in self.decoder:
            queries = layer(queries, positions, on_levels, memory, sizes, padding)
            kept.append(queries)
        return ImageQueries(torch.stack(kept if self.all_layers else kept[-1:]), references)
