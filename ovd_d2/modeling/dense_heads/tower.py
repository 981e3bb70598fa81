"""The tower of a grounding head: blocks in which image and text meet and levels exchange features
(GLIP, section 3.2, equations 4 to 6).

Letters: N images, P prompts, B pairs of an image and a prompt, C visual channels, L text tokens,
Ct text width, V visual tokens (all levels), h x w size of a level.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ovd_d2.layers.dyhead import DyConv
from ovd_d2.modeling.fusion import CrossAttention, text_layer


class GroundingBlock(nn.Module):
    """Fusion, a layer of the text's own, then the Dynamic Head's block; the last one alone if there
    is no fusion."""

    def __init__(
        self,
        *,
        dyconv: DyConv,
        fusion: CrossAttention | None = None,
        text_layer: nn.TransformerEncoderLayer | None = None,
        checkpoint_fusion: bool = False,
    ) -> None:
        """
        Args:
            dyconv: exchanges features between levels.
            fusion: attention between image and text.
            text_layer: follows the fusion.
            checkpoint_fusion: compute the fusion again in backward instead of keeping its
                attention maps (V x L x heads numbers each).
        """
        super().__init__()
        self.fusion = fusion
        self.text_layer = text_layer
        self.dyconv = dyconv
        self.checkpoint_fusion = checkpoint_fusion

    def forward(
        self, features: list[Tensor], text: Tensor, text_mask: Tensor, *, every_pair: bool = False
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Features, text and its mask after the block; B images and texts if ``every_pair``."""
        if self.fusion is not None:
            visual = torch.cat([level.flatten(2).transpose(1, 2) for level in features], dim=1)
            if self.checkpoint_fusion and self.training:
                visual, text = checkpoint(
                    self.fusion, visual, text, text_mask, every_pair=every_pair, use_reentrant=False
                )
            else:
                visual, text = self.fusion(visual, text, text_mask, every_pair=every_pair)
            sizes = [level.shape[-2:] for level in features]
            parts = visual.transpose(1, 2).split([h * w for h, w in sizes], dim=2)
            features = [part.unflatten(2, tuple(size)) for part, size in zip(parts, sizes)]
            text_mask = text_mask.repeat(len(text) // len(text_mask), 1)
        if self.text_layer is not None:
            text = self.text_layer(text, src_key_padding_mask=~text_mask)
        return self.dyconv(features), text, text_mask


class GroundingTower(nn.Module):
    """Blocks one after the other. With ``fusion`` GLIP-T and GLIP-L, without GLIP-T(A)."""

    def __init__(
        self,
        *,
        num_blocks: int = 6,
        channels: int = 256,
        text_width: int = 768,
        fusion: bool = True,
        fusion_init: float = 1.0,
        embed_dim: int = 2048,
        num_heads: int = 8,
        text_heads: int = 12,
        text_feedforward: int = 3072,
        dropout: float = 0.1,
        norm_groups: int = 16,
        coarse_offsets: str = "buffer",
        dynamic: bool = True,
        checkpoint_fusion: bool = False,
    ) -> None:
        """
        Args:
            num_blocks: GLIP-T 6, GLIP-L 8.
            channels: C.
            text_width: Ct.
            fusion: image and text meet in every block; False: the text stays as it came.
            fusion_init: the fusion's layer scale starts at ``fusion_init / num_blocks``, and a text
                layer with ``fusion_init`` times its usual weights behind attention and hidden
                units. GLIP: 1. Small: the blocks start near those without fusion.
            embed_dim: width of the fusion's attention.
            num_heads: of the fusion's attention.
            text_heads: of the text layers.
            text_feedforward: hidden units of the text layers.
            dropout: of fusion and text layers.
            norm_groups: of GroupNorm in the blocks.
            coarse_offsets: "buffer" (released weights) or "resize".
            dynamic: deformable convolution and DyReLU in the blocks.
            checkpoint_fusion: less memory in training, more time.
        """
        super().__init__()
        self.fuses = fusion
        self.blocks = nn.ModuleList()
        for _ in range(num_blocks):
            parts = {}
            if fusion:
                parts["fusion"] = CrossAttention(
                    channels,
                    text_width,
                    embed_dim=embed_dim,
                    num_heads=num_heads,
                    dropout=dropout,
                    initial_scale=fusion_init / num_blocks,
                )
                parts["text_layer"] = text_layer(
                    text_width,
                    num_heads=text_heads,
                    feedforward=text_feedforward,
                    dropout=dropout,
                    output_scale=fusion_init,
                )
            dyconv = DyConv(
                channels,
                norm_groups=norm_groups,
                coarse_offsets=coarse_offsets,
                dynamic=dynamic,
            )
            self.blocks.append(
                GroundingBlock(dyconv=dyconv, checkpoint_fusion=checkpoint_fusion, **parts)
            )

    def forward(
        self,
        features: Sequence[Tensor],
        text: Tensor,
        text_mask: Tensor,
        *,
        every_pair: bool = False,
    ) -> tuple[list[Tensor], Tensor]:
        """
        Args:
            features: levels (N, C, h, w), finest first.
            text: (P, L, Ct).
            text_mask: (P, L) bool, True on tokens that are not padding.
            every_pair: False: image i meets prompt i, N = P. True: every image meets every prompt.

        Returns:
            The levels and the text. With fusion and ``every_pair`` both have B = N * P rows, the
            prompts of image 0 first; else N and P as they came in.
        """
        features = list(features)
        for number, block in enumerate(self.blocks):
            features, text, text_mask = block(
                features, text, text_mask, every_pair=every_pair and number == 0
            )
        return features, text
