"""Detectron2's RPN head with batch norm.

Letters: N images, A anchors, Hi x Wi places of level i.
"""

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY, StandardRPNHead
from torch import Tensor, nn

from ovd_d2.errors import OVDError


@RPN_HEAD_REGISTRY.register()
class RPNHeadWithNorm(StandardRPNHead):
    """``StandardRPNHead`` with ``MODEL.RPN.NORM`` after each hidden convolution, as in ViLD's TPU
    code: the levels share the convolutions, and each has norms of its own."""

    @configurable
    def __init__(self, *, norm: str, num_levels: int, **kwargs):
        """
        Args:
            norm: as for :func:`detectron2.layers.get_norm`; not empty.
            num_levels: of the feature maps.
            kwargs: of :class:`StandardRPNHead`.
        """
        if not norm:
            raise OVDError("MODEL.RPN.NORM is empty: RPNHeadWithNorm needs one, such as SyncBN.")
        super().__init__(**kwargs)
        self.norms = nn.ModuleList(
            nn.ModuleList(get_norm(norm, conv.out_channels) for conv in self._convolutions())
            for _ in range(num_levels)
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        ret = super().from_config(cfg, input_shape)
        return {**ret, "norm": cfg.MODEL.RPN.NORM, "num_levels": len(input_shape)}

    def _get_rpn_conv(self, in_channels: int, out_channels: int) -> Conv2d:
        return Conv2d(in_channels, out_channels, kernel_size=3, padding=1)

    def _convolutions(self) -> list[Conv2d]:
        return list(self.conv) if isinstance(self.conv, nn.Sequential) else [self.conv]

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level objectness logits (N, A, Hi, Wi) and box deltas (N, 4 A, Hi, Wi)."""
        objectness, deltas = [], []
        for x, norms in zip(features, self.norms, strict=True):
            for conv, norm in zip(self._convolutions(), norms):
                x = F.relu(norm(conv(x)))
            objectness.append(self.objectness_logits(x))
            deltas.append(self.anchor_deltas(x))
        return objectness, deltas
