"""DetCLIP's head: from the levels of a pyramid to one embedding, box and centerness per location.

Letters: N images, A anchors (one per location, all levels), M concepts, D embedding width, C
channels, h x w size of a level.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovd_d2.layers.modulated_deform_conv import modulated_deform_conv2d

_TAPS = 9  # 3 x 3 kernels


@dataclass
class RegionOutputs:
    """Raw outputs, anchors of all levels one after the other, row by row.

    Attributes:
        regions: (N, A, D), scaled: their product with a concept's unit vector, plus the head's
            bias, is the logit.
        box_deltas: (N, A, 4) fp32, to be applied to the anchors.
        centerness: (N, A) fp32 logits.
        quality: (N, A) fp32 logits of the additional output; None: there is none.
    """

    regions: Tensor
    box_deltas: Tensor
    centerness: Tensor
    quality: Tensor | None = None


class DeformableStart(nn.Module):
    """The modulated deformable convolution in front of the classification branch (DetCLIPv2,
    section 3.1): it samples the pyramid's features where the regression branch's features say, so
    that the alignment loss of pairs, which have no boxes, reaches the regression branch."""

    def __init__(self, channels: int, norm_groups: int) -> None:
        """
        Args:
            channels: C, in and out.
            norm_groups: of GroupNorm.
        """
        super().__init__()
        self.sampling = nn.Conv2d(channels, 3 * _TAPS, 3, padding=1)
        nn.init.zeros_(self.sampling.weight)
        nn.init.zeros_(self.sampling.bias)
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        nn.init.normal_(self.weight, std=0.01)
        self.bias = nn.Parameter(torch.zeros(channels))
        self.norm = nn.GroupNorm(norm_groups, channels)

    def forward(self, features: Tensor, regression: Tensor) -> Tensor:
        """(N, C, h, w) of the pyramid and of the regression branch -> (N, C, h, w)."""
        offsets, factors = self.sampling(regression).split([2 * _TAPS, _TAPS], dim=1)
        given = (features, offsets, factors.sigmoid())
        given = (maps.to(self.weight.dtype) for maps in given)  # under AMP too
        y = modulated_deform_conv2d(*given, self.weight, self.bias, padding=1)
        return F.relu(self.norm(y))


class ConceptHead(nn.Module):
    """ATSS's head (Zhang et al. 2020) with an embedding in place of class logits.

    Two branches of 3 x 3 convolutions with GroupNorm, shared by all levels. Logits are
    ``exp(log_scale) * region . concept + bias``, the concept's vector of norm 1.
    """

    def __init__(
        self,
        *,
        channels: int,
        embed_dim: int,
        num_levels: int,
        num_convs: int = 4,
        norm_groups: int = 32,
        deformable: bool = True,
        quality: bool = False,
        normalize: bool = False,
        initial_scale: float = 1.0,
        positive_prior: float = 0.01,
    ) -> None:
        """
        Args:
            channels: C, of the features.
            embed_dim: D.
            num_levels: of the pyramid; each has its own factor on box deltas.
            num_convs: of each branch.
            norm_groups: of GroupNorm; divides C.
            deformable: see :class:`DeformableStart`; False: the classification branch reads the
                pyramid alone.
            quality: one more output per location, from the regression branch.
            normalize: regions have norm 1 before the scale (cosines); False: any norm.
            initial_scale: first value of the learned factor on products.
            positive_prior: probability that an untrained head gives to every concept.
        """
        super().__init__()
        self.deformable_start = DeformableStart(channels, norm_groups) if deformable else None
        self.regression = _branch(channels, num_convs, norm_groups)
        self.classification = _branch(channels, num_convs, norm_groups)
        self.embedding = nn.Conv2d(channels, embed_dim, 3, padding=1)
        self.box_deltas = nn.Conv2d(channels, 4, 3, padding=1)
        self.centerness = nn.Conv2d(channels, 1, 3, padding=1)
        self.quality = nn.Conv2d(channels, 1, 3, padding=1) if quality else None
        outputs = [self.embedding, self.box_deltas, self.centerness, self.quality]
        for output in filter(None, outputs):
            nn.init.normal_(output.weight, std=0.01)
            nn.init.zeros_(output.bias)
        self.level_scales = nn.Parameter(torch.ones(num_levels))
        self.normalize = normalize
        self.log_scale = nn.Parameter(torch.tensor(math.log(initial_scale)))
        self.bias = nn.Parameter(torch.tensor(-math.log((1 - positive_prior) / positive_prior)))

    def forward(self, features: Sequence[Tensor]) -> RegionOutputs:
        """Levels (N, C, h, w), finest first -> outputs of all anchors."""
        found = [self._of_level(*pair) for pair in zip(features, self.level_scales, strict=True)]
        regions, deltas, centerness, quality = (
            None if maps[0] is None else torch.cat([_per_location(m) for m in maps], dim=1)
            for maps in zip(*found)
        )
        return RegionOutputs(
            self._scaled(regions),
            deltas.float(),
            centerness[..., 0].float(),
            None if quality is None else quality[..., 0].float(),
        )

    def _of_level(
        self, features: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        regression = self.regression(features)
        classification = features
        if self.deformable_start is not None:
            classification = self.deformable_start(features, regression)
        return (
            self.embedding(self.classification(classification)),
            self.box_deltas(regression).float() * scale,
            self.centerness(regression),
            None if self.quality is None else self.quality(regression),
        )

    def _scaled(self, regions: Tensor) -> Tensor:
        with torch.autocast(regions.device.type, enabled=False):
            regions = regions.float()
            if self.normalize:
                regions = F.normalize(regions, dim=-1)
            return regions * self.log_scale.exp()


def _branch(channels: int, num_convs: int, norm_groups: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        nn.init.normal_(convolution.weight, std=0.01)
        layers += [convolution, nn.GroupNorm(norm_groups, channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _per_location(maps: Tensor) -> Tensor:
    """(N, c, h, w) -> (N, h w, c)."""
    return maps.flatten(2).transpose(1, 2)
