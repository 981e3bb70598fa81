"""The block of the Dynamic Head (Dai et al. 2021, arXiv 2106.08322): all levels of a pyramid
exchange features by deformable convolution, weighted by scale attention.

Letters: N images, C channels, h x w size of a level; level l + 1 is the coarser neighbour of l.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovd_d2.errors import OVDError

from .dyrelu import DyReLU
from .modulated_deform_conv import modulated_deform_conv2d

COARSE_OFFSETS = ("buffer", "resize")
_TAPS = 9  # 3 x 3 kernels


class DyConv(nn.Module):
    """One block: spatial, scale and task awareness in turn.

    Level l becomes ``DyReLU(mean_b s_b * y_b)``, where the branches b are 3 x 3 convolutions with
    GroupNorm of level l, of the finer level l - 1 (stride 2) and of the coarser level l + 1
    (upsampled, bilinear, corners aligned); s_b is their scale attention, one number per image. The
    offsets and factors of all branches come from level l, by one convolution.

    **Offsets of the coarser branch.** They are predicted at the size of level l and used at that
    of level l + 1. ``coarse_offsets`` says how:

    * "buffer": as the public CUDA kernel does, which does not check sizes: the first 18 h' w'
      numbers of the level's flat (18, h, w) offsets are taken for (18, h', w'), the factors
      likewise. What released weights were trained with.
    * "resize": bilinear interpolation to the coarser size; for models trained anew.

    With ``dynamic=False`` it has plain convolutions and ReLU.
    """

    def __init__(
        self,
        channels: int,
        *,
        norm_groups: int = 16,
        coarse_offsets: str = "buffer",
        dynamic: bool = True,
    ) -> None:
        """
        Args:
            channels: C, in and out.
            norm_groups: of GroupNorm; divides C.
            coarse_offsets: "buffer" or "resize".
            dynamic: deformable convolution and DyReLU.

        Raises:
            OVDError: unknown ``coarse_offsets``, or groups that do not divide the channels.
        """
        super().__init__()
        if coarse_offsets not in COARSE_OFFSETS:
            raise OVDError(f'coarse_offsets is "{coarse_offsets}"; use "buffer" or "resize".')
        if channels % norm_groups:
            raise OVDError(
                f"norm_groups is {norm_groups}, which does not divide the {channels} channels."
            )
        self.coarse_offsets = coarse_offsets
        convolutions = {
            "coarser": nn.Conv2d(channels, channels, 3, padding=1),
            "same": nn.Conv2d(channels, channels, 3, padding=1),
            "finer": nn.Conv2d(channels, channels, 3, padding=1, stride=2),
        }
        self.convolutions = nn.ModuleDict(convolutions)
        if dynamic:
            self.convolutions.to(memory_format=torch.channels_last)  # as they are multiplied
        self.norms = nn.ModuleDict(
            {name: nn.GroupNorm(norm_groups, channels) for name in convolutions}
        )
        self.scale_attention = nn.Linear(channels, 1)
        self.offsets = nn.Conv2d(channels, 3 * _TAPS, 3, padding=1) if dynamic else None
        self.activation = DyReLU(channels) if dynamic else nn.ReLU(inplace=True)
        self._initialise(channels)

    def _initialise(self, channels: int) -> None:
        """As the public code: the offsets keep torch's default, so they do not start at zero."""
        bound = 1 / math.sqrt(_TAPS * channels)
        for convolution in self.convolutions.values():
            if self.offsets is None:
                nn.init.normal_(convolution.weight, std=0.01)
            else:
                nn.init.uniform_(convolution.weight, -bound, bound)
            nn.init.zeros_(convolution.bias)
        nn.init.normal_(self.scale_attention.weight, std=0.01)
        nn.init.zeros_(self.scale_attention.bias)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """(N, C, h, w) per level, finest first, each half the size of the one before (halves round
        up) -> the same shapes."""
        return [self.activation(self._mix(levels, level)) for level in range(len(levels))]

    def _mix(self, levels: Sequence[Tensor], level: int) -> Tensor:
        x = levels[level]
        sampling = None
        if self.offsets is not None:
            offsets, factors = self.offsets(x).split([2 * _TAPS, _TAPS], dim=1)
            sampling = offsets, factors.sigmoid()
        branches = [self._branch("same", x, sampling)]
        if level > 0:
            branches.append(self._branch("finer", levels[level - 1], sampling))
        if level + 1 < len(levels):
            coarser = levels[level + 1]
            if sampling is not None:
                sampling = tuple(self._at_size(maps, coarser.shape[-2:]) for maps in sampling)
            y = self._branch("coarser", coarser, sampling)
            branches.append(
                F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=True)
            )
        return sum(self._weight(y) * y for y in branches) / len(branches)

    def _branch(self, name: str, x: Tensor, sampling: tuple[Tensor, Tensor] | None) -> Tensor:
        convolution = self.convolutions[name]
        if sampling is None:
            return self.norms[name](convolution(x))
        weight = convolution.weight
        y = modulated_deform_conv2d(
            *(maps.to(weight.dtype) for maps in (x, *sampling)),  # under AMP too
            weight,
            convolution.bias,
            stride=convolution.stride[0],
            padding=convolution.padding[0],
        )
        return self.norms[name](y)

    def _weight(self, y: Tensor) -> Tensor:
        """Scale attention of a branch, (N, 1, 1, 1) in [0, 1]."""
        attention = self.scale_attention(y.mean(dim=(2, 3)))
        return F.hardsigmoid(F.relu(attention))[..., None, None]

    def _at_size(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, c, h, w) offsets or factors of a level, for the (h', w') of the coarser one."""
        if self.coarse_offsets == "resize":
            return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
        number, channels = maps.shape[:2]
        flat = maps.reshape(number, -1)[:, : channels * size[0] * size[1]]
        return flat.reshape(number, channels, *size)
