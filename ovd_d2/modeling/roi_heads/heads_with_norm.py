"""Detectron2's box and mask head with norm after every layer, as in ViLD's TPU code.

Letters: R regions over the batch, C channels, F width of a fully connected layer, S side.
"""

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling.roi_heads import (
    ROI_BOX_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    FastRCNNConvFCHead,
    MaskRCNNConvUpsampleHead,
)
from torch import Tensor, nn


@ROI_BOX_HEAD_REGISTRY.register()
class BoxHeadWithNorm(FastRCNNConvFCHead):
    """``FastRCNNConvFCHead`` whose ``MODEL.ROI_BOX_HEAD.NORM`` also follows its fully connected
    layers."""

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, conv_dims: list[int], fc_dims: list[int], conv_norm: str
    ):
        """
        Args:
            input_shape: of a pooled region.
            conv_dims: channels of the convolutions.
            fc_dims: widths of the fully connected layers.
            conv_norm: of both; as for :func:`detectron2.layers.get_norm`.
        """
        super().__init__(input_shape, conv_dims=conv_dims, fc_dims=fc_dims, conv_norm=conv_norm)
        if conv_norm:
            for k, width in enumerate(fc_dims, start=1):
                _insert_after(self, f"fc{k}", f"fc_norm{k}", VectorNorm(conv_norm, width))


@ROI_MASK_HEAD_REGISTRY.register()
class MaskHeadWithNorm(MaskRCNNConvUpsampleHead):
    """``MaskRCNNConvUpsampleHead`` whose ``MODEL.ROI_MASK_HEAD.NORM`` also follows its
    deconvolution."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        conv_dims: list[int],
        conv_norm: str,
        **kwargs,
    ):
        """
        Args:
            input_shape: of a pooled region.
            num_classes: 1 for masks that no class owns.
            conv_dims: channels of the convolutions and of the deconvolution.
            conv_norm: of all of them; as for :func:`detectron2.layers.get_norm`.
            kwargs: of :class:`BaseMaskRCNNHead`.
        """
        super().__init__(
            input_shape, num_classes=num_classes, conv_dims=conv_dims, conv_norm=conv_norm, **kwargs
        )
        if conv_norm:
            _insert_after(self, "deconv", "deconv_norm", get_norm(conv_norm, conv_dims[-1]))


class VectorNorm(nn.Module):
    """A norm for feature maps (R, F, 1, 1) on vectors (R, F)."""

    def __init__(self, norm: str, width: int):
        """
        Args:
            norm: as for :func:`detectron2.layers.get_norm`.
            width: F.
        """
        super().__init__()
        self.norm = get_norm(norm, width)

    def forward(self, x: Tensor) -> Tensor:
        """(R, F) -> (R, F)."""
        if self.training and len(x) == 1:
            # torch refuses the statistics of one row; those of two equal ones are the same.
            return self.forward(torch.cat([x, x]))[:1]
        return self.norm(x[:, :, None, None]).flatten(1)


def _insert_after(sequence: nn.Sequential, name: str, new_name: str, layer: nn.Module) -> None:
    """Puts ``layer`` behind the one called ``name``."""
    names = list(sequence._modules)
    behind = names[names.index(name) + 1 :]
    moved = {other: sequence._modules.pop(other) for other in behind}
    sequence.add_module(new_name, layer)
    sequence._modules.update(moved)
