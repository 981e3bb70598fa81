"""The image encoder of GroupViT: a plain ViT whose tokens are grouped between its stages.

Letters: N images, L tokens, T group tokens, G groups, C width, h and w patches.

Source: Xu et al. 2022, "GroupViT: Semantic Segmentation Emerges from Text Supervision", section 3.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ovd_d2.errors import OVDError
from ovd_d2.layers.grouping import Assignment, Grouping, GroupingBlock, TokenMixer


class GroupedImages(NamedTuple):
    """N images as segments.

    Attributes:
        tokens: (N, G, C), the last stage's, normed.
        groupings: of every stage that groups, finest first.
        grid: (h, w), patches of the image.
    """

    tokens: Tensor
    groupings: tuple[Grouping, ...]
    grid: tuple[int, int]

    @property
    def pooled(self) -> Tensor:
        """(N, C), the mean over the segments."""
        return self.tokens.mean(dim=1)

    def segment_maps(self) -> Tensor:
        """(N, G, h, w) fp32, the share of each patch in each last segment: the product of the
        stages' soft maps."""
        maps = self.groupings[0].soft
        for grouping in self.groupings[1:]:
            maps = grouping.soft @ maps
        return maps.unflatten(2, self.grid)


class GroupingStage(nn.Module):
    """Transformer blocks over tokens and group tokens together, and a grouping of the tokens."""

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        *,
        width: int,
        group_tokens: int = 0,
        tokens_before: int = 0,
        grouping: GroupingBlock | None = None,
    ) -> None:
        """
        Args:
            blocks: (N, L + T, C) -> the same.
            width: C.
            group_tokens: T; 0: this stage groups nothing.
            tokens_before: group tokens of the stage before, from which this one's start; 0: this
                is the first.
            grouping: of ``group_tokens``; None: this stage groups nothing.
        """
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.grouping = grouping
        self.group_tokens = self.group_projector = None
        if group_tokens:
            self.group_tokens = nn.Parameter(torch.zeros(1, group_tokens, width))
            if tokens_before:
                self.group_projector = TokenMixer(tokens_before, group_tokens, width)

    def forward(
        self, tokens: Tensor, tokens_before: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Grouping | None]:
        """
        Args:
            tokens: (N, L, C).
            tokens_before: (N, T, C), group tokens of the stage before as its blocks left them.

        Returns:
            the tokens (N, G, C) or, without a grouping, (N, L, C); this stage's group tokens after
            its blocks; the grouping.
        """
        length = tokens.shape[1]
        if self.group_tokens is not None:
            groups = self.group_tokens.expand(len(tokens), -1, -1)
            if self.group_projector is not None:
                groups = groups + self.group_projector(tokens_before)
            tokens = torch.cat([tokens, groups], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        if self.grouping is None:
            return tokens, None, None
        groups = tokens[:, length:]
        found = self.grouping(tokens[:, :length], groups)
        return found.segments, groups, found


class GroupViTEncoder(nn.Module):
    """Images (N, 3, H, W) fp32, normalised, sides multiples of the patch -> :class:`GroupedImages`.

    There is no class token. Positions of another number of patches are interpolated.
    """

    def __init__(
        self,
        *,
        image_size: int = 224,
        patch: int = 16,
        width: int = 384,
        heads: int = 6,
        depths: Sequence[int] = (6, 3, 3),
        group_tokens: Sequence[int] = (64, 8, 0),
        output_groups: Sequence[int] = (64, 8),
        drop_path: float = 0.1,
        assignment: Callable[[int], Assignment] = Assignment,
    ) -> None:
        """
        Args:
            image_size: side of the square image that the learned positions are of.
            patch: side of a patch, pixels.
            width: C.
            heads: of attention.
            depths: blocks of each stage.
            group_tokens: T of each stage, 0 for the last.
            output_groups: G of each stage but the last.
            drop_path: stochastic depth of the last block; of the others less, linearly from 0.
            assignment: width -> that of a grouping block.

        Raises:
            OVDError: numbers that do not fit together, or timm is missing.
        """
        super().__init__()
        _check(image_size, patch, width, heads, depths, group_tokens, output_groups)
        block, patch_embed, trunc_normal = _timm_parts()
        self.patch = patch
        self.side = image_size // patch
        self.patch_embed = patch_embed(
            img_size=None, patch_size=patch, embed_dim=width, norm_layer=nn.LayerNorm
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, self.side**2, width))
        rates = torch.linspace(0, drop_path, sum(depths)).tolist()
        stages = []
        for stage, depth in enumerate(depths):
            blocks = [
                block(width, heads, qkv_bias=True, drop_path=rates.pop(0), norm_layer=nn.LayerNorm)
                for _ in range(depth)
            ]
            groups = None
            if group_tokens[stage]:
                groups = GroupingBlock(
                    width, heads=heads, tokens=group_tokens[stage], groups=output_groups[stage],
                    assignment=assignment(width),
                )  # fmt: skip
            before = group_tokens[stage - 1] if stage else 0
            stages.append(
                GroupingStage(
                    blocks, width=width, group_tokens=group_tokens[stage], tokens_before=before,
                    grouping=groups,
                )
            )  # fmt: skip
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(width)
        self._initialise(trunc_normal)

    def _initialise(self, trunc_normal: Callable) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                trunc_normal(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        trunc_normal(self.pos_embed, std=0.02)
        trunc_normal(self.stages[0].group_tokens, std=0.02)  # later ones start at those before

    def forward(self, images: Tensor) -> GroupedImages:
        grid = (images.shape[2] // self.patch, images.shape[3] // self.patch)
        tokens = self.patch_embed(images) + self.positions(grid)
        group_tokens, groupings = None, []
        for stage in self.stages:
            tokens, group_tokens, grouping = stage(tokens, group_tokens)
            groupings += [] if grouping is None else [grouping]
        return GroupedImages(self.norm(tokens), tuple(groupings), grid)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """(1, h * w, C), the learned ones, bicubic (``align_corners=False``) on another grid."""
        from timm.layers import resample_abs_pos_embed

        return resample_abs_pos_embed(
            self.pos_embed, list(grid), num_prefix_tokens=0, antialias=False, align_corners=False
        )


def _check(
    image_size: int,
    patch: int,
    width: int,
    heads: int,
    depths: Sequence[int],
    group_tokens: Sequence[int],
    output_groups: Sequence[int],
) -> None:
    stages = len(depths)
    if stages < 2 or len(group_tokens) != stages or len(output_groups) != stages - 1:
        raise OVDError(
            f"GroupViT: depths {list(depths)} name {stages} stages, but there are "
            f"{len(group_tokens)} numbers of group_tokens and {len(output_groups)} of "
            "output_groups: give one of group_tokens for every stage, and one of output_groups for "
            "each but the last, of at least 2 stages."
        )
    groups = [*output_groups, 0]
    if group_tokens[-1] or min(itertools.chain(group_tokens[:-1], output_groups)) < 1:
        raise OVDError(
            f"GroupViT: group_tokens is {list(group_tokens)} and output_groups {list(groups[:-1])}:"
            " each must be at least 1, and the last of group_tokens 0."
        )
    if image_size % patch or width % heads:
        raise OVDError(
            f"GroupViT: image_size {image_size} must be a multiple of patch {patch}, and width "
            f"{width} of heads {heads}."
        )


def _timm_parts() -> tuple[Callable, Callable, Callable]:
    try:
        from timm.layers import PatchEmbed, trunc_normal_
        from timm.models.vision_transformer import Block
    except ImportError as error:
        raise OVDError(
            f"MODEL.META_ARCHITECTURE GroupViT needs timm ({error}): run `pip install timm`."
        ) from error
    return Block, PatchEmbed, trunc_normal_
