"""A plain ViT of timm as a backbone with four feature maps, for inputs of any size.

Letters: N images, L patches (L = h * w), D token width, C channels.

Source: Ranftl et al. 2021, "Vision Transformers for Dense Prediction".
"""

import logging
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ovd_d2.errors import OVDError
from ovd_d2.layers.timm_weights import load_timm_weights

from .reassemble import STRIDES, Reassemble
from .timm_fpn import timm_that_has

logger = logging.getLogger(__name__)


class TimmViTPyramid(Backbone):
    """Tokens behind four blocks of a ViT, reassembled to maps of stride 4, 8, 16 and 32.

    Input: (N, 3, H, W) float, sides multiples of 32, colours and mean / std as the weights expect
    them. Output: "stride4" -> (N, C, H / 4, W / 4) and so on. Tokens are read as the blocks leave
    them, before the network's last norm. Positions are resized (bilinear) to the patches of every
    input; the class token keeps its own. Attention reaches over the whole input, padding included.

    What the maps do not depend on is not there: the classifier, the last norm, and blocks behind
    the last one that is read.
    """

    def __init__(
        self,
        vit: nn.Module,
        *,
        blocks: Sequence[int],
        channels: Sequence[int],
        readout: str = "project",
        freeze_stages: int = 0,
        recompute: bool = False,
    ) -> None:
        """
        Args:
            vit: ``timm.models.VisionTransformer`` with a class token and patches of 16 or 32.
            blocks: four rising numbers from 0; their tokens make the levels, finest first.
            channels: C of each level.
            readout: what becomes of the class token, see :class:`Readout`.
            freeze_stages: leading stages without gradient: patches and positions, then blocks.
            recompute: activations of the blocks are computed again in the backward pass.

        Raises:
            OVDError: another kind of ViT, or blocks that it does not have.
        """
        super().__init__()
        patch = _patch_of(vit)
        _check_blocks(blocks, channels, len(vit.blocks))
        vit.reset_classifier(0)
        vit.norm = vit.fc_norm = nn.Identity()
        vit.blocks = nn.Sequential(*list(vit.blocks)[: blocks[-1] + 1])
        self.vit = vit
        self.patch = patch
        self.blocks = list(blocks)
        self.recompute = recompute
        self.levels = nn.ModuleList(
            Reassemble(vit.embed_dim, c, patch=patch, stride=stride, readout=readout)
            for c, stride in zip(channels, STRIDES)
        )
        self._out_features = [f"stride{s}" for s in STRIDES]
        self._out_feature_strides = dict(zip(self._out_features, STRIDES))
        self._out_feature_channels = dict(zip(self._out_features, channels))
        if freeze_stages > 1 + len(vit.blocks):
            raise OVDError(
                f"MODEL.TIMM.FREEZE_STAGES is {freeze_stages}, the network has "
                f"{1 + len(vit.blocks)} stages."
            )
        if freeze_stages:
            for value in (vit.cls_token, vit.pos_embed, *vit.patch_embed.parameters()):
                value.requires_grad_(False)
            vit.blocks[: freeze_stages - 1].requires_grad_(False)

    @property
    def size_divisibility(self) -> int:
        return STRIDES[-1]

    def tokens(self, x: Tensor) -> list[Tensor]:
        """(N, 1 + L, D), class token first, behind each of ``blocks``."""
        vit = self.vit
        patches = vit.patch_embed.proj(x)
        grid = patches.shape[-2:]
        patches = vit.patch_embed.norm(patches.flatten(2).transpose(1, 2))
        x = torch.cat([vit.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        x = vit.norm_pre(vit.pos_drop(x + resized_positions(vit.pos_embed, grid)))
        found = []
        for place, block in enumerate(vit.blocks):
            if self.recompute and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
            if place in self.blocks:
                found.append(x)
        return found

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        height, width = x.shape[-2:]
        grid = height // self.patch, width // self.patch
        maps = [level(t, grid) for level, t in zip(self.levels, self.tokens(x))]
        return dict(zip(self._out_features, maps))


def resized_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Embeddings of the positions of a square grid of patches for a grid of another size.

    Args:
        positions: (1, 1 + S * S, D), that of the class token first; it stays as it is.
        grid: h and w.

    Returns:
        (1, 1 + h * w, D); bilinear, corners not aligned.
    """
    from timm.layers import resample_abs_pos_embed

    return resample_abs_pos_embed(
        positions, list(grid), interpolation="bilinear", antialias=False, align_corners=False
    )


@BACKBONE_REGISTRY.register()
def build_timm_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmViTPyramid:
    """The ViT that MODEL.TIMM names, with the levels of MODEL.TIMM.VIT.

    Raises:
        OVDError: timm missing, unknown model, one that is no plain ViT, or weights that do not fit.
    """
    keys = cfg.MODEL.TIMM
    timm = timm_that_has(keys.NAME)
    vit = timm.create_model(
        keys.NAME,
        pretrained=keys.WEIGHTS == "timm",
        in_chans=input_shape.channels,
        drop_path_rate=keys.DROP_PATH_RATE,
    )
    backbone = TimmViTPyramid(
        vit,
        blocks=keys.VIT.BLOCKS,
        channels=keys.VIT.CHANNELS,
        readout=keys.VIT.READOUT,
        freeze_stages=keys.FREEZE_STAGES,
        recompute=keys.CHECKPOINT,
    )
    if keys.WEIGHTS not in ("", "timm"):
        loaded = load_timm_weights(backbone.vit, keys.NAME, keys.WEIGHTS, "MODEL.TIMM.WEIGHTS")
        logger.info("Loaded %d backbone weights from %s", loaded, keys.WEIGHTS)
    return backbone


def _patch_of(vit: nn.Module) -> int:
    """Side of its patches; raises OVDError unless it is a plain ViT."""
    embed, positions = getattr(vit, "patch_embed", None), getattr(vit, "pos_embed", None)
    patch = getattr(embed, "patch_size", (0,))[0]
    plain = (
        isinstance(positions, nn.Parameter)
        and getattr(vit, "cls_token", None) is not None
        and positions.shape[1] == 1 + embed.num_patches
        and embed.grid_size[0] == embed.grid_size[1]
    )
    if not plain or patch not in (16, 32):
        raise OVDError(
            "MODEL.TIMM.NAME for MODEL.BACKBONE.NAME build_timm_vit_backbone must be a plain ViT: "
            "one class token, learned positions, patches of 16 or 32 pixels, a square input; take "
            "vit_large_patch16_384, say, or build_timm_backbone for a convolutional network."
        )
    return patch


def _check_blocks(blocks: Sequence[int], channels: Sequence[int], count: int) -> None:
    blocks, levels = list(blocks), len(STRIDES)
    rising = blocks == sorted(set(blocks)) and len(blocks) == levels
    if not rising or blocks[0] < 0 or blocks[-1] >= count:
        raise OVDError(
            f"MODEL.TIMM.VIT.BLOCKS is {blocks}; it must be {levels} rising numbers from 0 to "
            f"{count - 1}, the blocks of the network."
        )
    if len(channels) != levels:
        raise OVDError(
            f"MODEL.TIMM.VIT.CHANNELS has {len(channels)} values; give {levels}, one per level."
        )
