"""What an object query says: which words it stands for, and where its box is.

Letters: Q object queries, C width, T word columns.
"""

import torch
from torch import Tensor, nn

from .deformable_transformer import inverse_sigmoid


class QueryHeads(nn.Module):
    """One class layer and one box layer, the same for the queries after any layer (MAVL, section
    3.1)."""

    def __init__(self, dim: int, columns: int) -> None:
        """
        Args:
            dim: C.
            columns: T + 1, the last of them "no object".
        """
        super().__init__()
        self.classes = nn.Linear(dim, columns)
        self.boxes = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 4)
        )
        nn.init.zeros_(self.boxes[-1].weight)
        with torch.no_grad():
            self.boxes[-1].bias.copy_(torch.tensor([0.0, 0.0, -2.0, -2.0]))

    def forward(self, queries: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            queries: (..., Q, C).
            references: (..., Q, 2) x, y in 0..1; broadcast over leading axes.

        Returns:
            (..., Q, T + 1) logits and (..., Q, 4) boxes, cx cy w h in 0..1 of the image without
            padding.
        """
        deltas = self.boxes(queries)
        centres = deltas[..., :2] + inverse_sigmoid(references)
        return self.classes(queries), torch.cat([centres, deltas[..., 2:]], dim=-1).sigmoid()
