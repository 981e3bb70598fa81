"""Deformable convolution where Detectron2 was installed without its compiled operators.

Detectron2's ``DeformConv`` and ``ModulatedDeformConv`` (``MODEL.RESNETS.DEFORM_ON_PER_STAGE``) need
``detectron2._C``; without it their names stand for classes that raise ImportError. The two classes
here have the same arguments, parameters and results, and compute by ``torchvision.ops.
deform_conv2d``, forward and backward, on CPU and GPU. :func:`install` puts them in the places where
Detectron2 looks; with ``detectron2._C`` it changes nothing.

Letters: G deformable groups, K taps of the kernel.
"""

import importlib
from collections.abc import Callable

import torch
from detectron2.layers.wrappers import _NewEmptyTensorOp
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torchvision.ops import deform_conv2d

# Modules that took the two names from Detectron2's layers when they were imported.
_PLACES = ("detectron2.layers.deform_conv", "detectron2.layers",
           "detectron2.modeling.backbone.resnet")  # fmt: skip


class DeformConv(nn.Module):
    """Deformable convolution (Dai et al. 2017), as ``detectron2.layers.DeformConv``."""

    modulated = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        bias: bool = False,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """
        Args:
            in_channels: of the input.
            out_channels: of the output.
            kernel_size: of the filter; this and the next three for both axes or (y, x).
            stride: in pixels.
            padding: zeros on each side.
            dilation: distance of the taps without offsets.
            groups: of the convolution.
            deformable_groups: G; each has its own offsets.
            bias: only :class:`ModulatedDeformConv` may have one.
            norm: applied to the result.
            activation: applied last.
        """
        super().__init__()
        if bias and not self.modulated:
            raise ValueError("bias: a DeformConv has none.")
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups {groups} must divide in_channels {in_channels} and out_channels "
                f"{out_channels}."
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _pair(kernel_size)
        self.stride = _pair(stride)
        self.padding = _pair(padding)
        self.dilation = _pair(dilation)
        self.groups = groups
        self.deformable_groups = deformable_groups
        self.norm = norm
        self.activation = activation
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, *self.kernel_size)
        )
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """(N, C, H, W) and offsets (N, G * K * 2, H', W') in pixels, y first -> (N, O, H', W')."""
        return self._convolve(x, offset, None)

    def _convolve(self, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        if x.numel() == 0:
            size = [
                (n + 2 * p - (d * (k - 1) + 1)) // s + 1
                for n, p, d, k, s in zip(
                    x.shape[-2:], self.padding, self.dilation, self.kernel_size, self.stride
                )
            ]
            return _NewEmptyTensorOp.apply(x, [x.shape[0], self.out_channels, *size])
        x = deform_conv2d(
            x,
            offset,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            mask=mask,
        )
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)

    def extra_repr(self) -> str:
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation",
                 "groups", "deformable_groups")  # fmt: skip
        shown = [f"{name}={getattr(self, name)}" for name in names]
        return ", ".join([*shown, f"bias={self.bias is not None}"])


class ModulatedDeformConv(DeformConv):
    """With a factor per tap (Zhu et al. 2019), as ``detectron2.layers.ModulatedDeformConv``."""

    modulated = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        bias: bool = True,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """See :class:`DeformConv`; ``bias`` is on here."""
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups,
            deformable_groups, bias, norm, activation,
        )  # fmt: skip

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """As :meth:`DeformConv.forward`, with factors ``mask`` (N, G * K, H', W')."""
        return self._convolve(x, offset, mask)


def has_compiled_ops() -> bool:
    """Whether ``detectron2._C`` is there and loads."""
    try:
        importlib.import_module("detectron2._C")
    except ImportError:
        return False
    return True


def install() -> None:
    """Lets Detectron2 use the classes above if it lacks compiled ones; twice is harmless.

    A module that imported the two names from Detectron2 before this ran keeps the unusable ones,
    but for those of Detectron2 itself.
    """
    if has_compiled_ops():
        return
    for place in _PLACES:
        module = importlib.import_module(place)
        module.DeformConv = DeformConv
        module.ModulatedDeformConv = ModulatedDeformConv
