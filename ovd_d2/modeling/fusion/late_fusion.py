"""Object queries and words read each other when the image is done (MAVL, section 3.1).

Letters: B pairs of an image and a text, Q object queries, L tokens, C width, Ct text width, F
fusion layers.
"""

import torch
from torch import Tensor, nn


class LateFusion(nn.Module):
    """Self-attention over the Q object queries and the L tokens of a text, in one sequence.

    Neither image positions nor queries' own embeddings are added: what a query is about is in it.
    """

    def __init__(
        self,
        text_dim: int,
        *,
        dim: int = 256,
        layers: int = 6,
        heads: int = 8,
        hidden: int = 1024,
        dropout: float = 0.1,
    ) -> None:
        """
        Args:
            text_dim: Ct.
            dim: C.
            layers: F.
            heads: of each attention; divides C.
            hidden: units of the hidden layers.
            dropout: in training; of the projected words too.
        """
        super().__init__()
        self.text_projection = nn.Sequential(
            nn.Linear(text_dim, dim), nn.LayerNorm(dim, eps=1e-12), nn.Dropout(dropout)
        )
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, heads, hidden, dropout, batch_first=True)
            for _ in range(layers)
        )
        for parameter in self.layers.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, queries: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """
        Args:
            queries: (B, Q, C), the last ones of the decoder.
            text: (B, L, Ct) token features.
            mask: (B, L) bool, True on tokens that are not padding.

        Returns:
            (F, B, Q, C), the object queries after each layer.
        """
        return self.read(queries, self.text_projection(text), mask)

    def read(self, queries: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """As :meth:`forward`, of projected words (B, L, C)."""
        number = queries.shape[1]
        sequence = torch.cat([queries, words], dim=1)
        padding = torch.cat([mask.new_zeros(len(mask), number), ~mask], dim=1)
        found = []
        for layer in self.layers:
            sequence = layer(sequence, src_key_padding_mask=padding)
            found.append(sequence[:, :number])
        return torch.stack(found)
