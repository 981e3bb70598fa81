"""Detectron2's Swin Transformer under its FPN, with P6 and P7.

Source: Liu et al. 2021, "Swin Transformer"; the levels are those of GLIP (Li et al. 2022).
"""

import logging

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, SwinTransformer
from detectron2.modeling.backbone.swin import SwinTransformerBlock
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ovd_d2.errors import OVDError
from ovd_d2.layers.timm_weights import read_state_file
from ovd_d2.modeling.backbone.timm_fpn import with_p6_p7

logger = logging.getLogger(__name__)


class RecomputedBlock(SwinTransformerBlock):
    """A block whose activations are computed again in the backward pass instead of kept.

    Detectron2's own way is the older kind of checkpoint, which warns, and gives no gradients where
    the input has none. It also reads the block's size H, W in the backward pass, when another
    batch may have passed.
    """

    def forward(self, x: Tensor, mask_matrix: Tensor) -> Tensor:
        """(N, H * W, C) -> the same; H and W are attributes, as in the base class."""
        if not torch.is_grad_enabled():
            return super().forward(x, mask_matrix)
        return checkpoint(self._of_size, x, mask_matrix, self.H, self.W, use_reentrant=False)

    def _of_size(self, x: Tensor, mask_matrix: Tensor, height: int, width: int) -> Tensor:
        self.H, self.W = height, width
        return super().forward(x, mask_matrix)


@BACKBONE_REGISTRY.register()
def build_retinanet_swin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """P3-P5 of a Swin Transformer's stages 2-4 (each normalised), P6 and P7 by strides from P5.

    Raises:
        OVDError: MODEL.SWIN.WEIGHTS that cannot be read or do not fit.
    """
    keys = cfg.MODEL.SWIN
    net = SwinTransformer(
        in_chans=input_shape.channels,
        embed_dim=keys.EMBED_DIM,
        depths=keys.DEPTHS,
        num_heads=keys.NUM_HEADS,
        window_size=keys.WINDOW_SIZE,
        drop_path_rate=keys.DROP_PATH_RATE,
        out_indices=(1, 2, 3),
        frozen_stages=keys.FREEZE_STAGES,
    )
    if keys.CHECKPOINT:
        for layer in net.layers:
            for block in layer.blocks:
                block.__class__ = RecomputedBlock
    if keys.WEIGHTS:
        _load(net, keys.WEIGHTS)
    return with_p6_p7(cfg, net)


def _load(net: SwinTransformer, path: str) -> None:
    """ImageNet weights under the names of the public release; norms of the outputs are new there.

    Raises:
        OVDError: missing file or weights, or shapes of another variant.
    """
    state = read_state_file(path, "MODEL.SWIN.WEIGHTS")
    state = state["model"] if isinstance(state.get("model"), dict) else state
    wanted = net.state_dict()
    bad = [
        name
        for name, value in wanted.items()
        if not name.startswith("norm")
        and (not torch.is_tensor(state.get(name)) or state[name].shape != value.shape)
    ]
    if bad:
        raise OVDError(
            f"MODEL.SWIN.WEIGHTS {path} lacks {bad[0]} of shape {tuple(wanted[bad[0]].shape)} (and "
            f"{len(bad) - 1} more): give the weights of this variant, or change MODEL.SWIN."
        )
    kept = {n: state[n] for n, v in wanted.items() if n in state and state[n].shape == v.shape}
    net.load_state_dict(kept, strict=False)
    logger.info("Loaded %d of %d backbone weights from %s", len(kept), len(wanted), path)
