"""Augmentations of whole images by timm and torchvision, for ``INPUT.PAIRS``.

Letter: S side of the image.
"""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from ovd_d2.errors import OVDError


def auto_augmentation(policy: str, fill: Sequence[float]) -> Callable[[Image.Image], Image.Image]:
    """Random operations of timm on an RGB image (Cubuk et al. 2019, "RandAugment", and others).

    Args:
        policy: as timm writes it: "rand-m9-mstd0.5-inc1", "original-mstd0.5", "augmix-m5", ...
        fill: colour of what an operation leaves empty, 0-255 per channel.

    Raises:
        OVDError: timm is missing, or does not know the policy.
    """
    try:
        from timm.data.auto_augment import (
            augment_and_mix_transform,
            auto_augment_transform,
            rand_augment_transform,
        )
    except ImportError as error:
        raise OVDError(
            f"INPUT.PAIRS.AUTO_AUGMENT needs timm ({error}): run `pip install timm`."
        ) from error
    colour = {"img_mean": tuple(min(255, round(value)) for value in fill)}
    make = {"rand": rand_augment_transform, "augmix": augment_and_mix_transform}
    try:
        return make.get(policy.split("-")[0], auto_augment_transform)(policy, colour)
    except (AssertionError, KeyError, ValueError, IndexError) as error:
        raise OVDError(
            f"INPUT.PAIRS.AUTO_AUGMENT is {policy!r}, which timm does not know ({error}): write "
            "for example rand-m9-mstd0.5-inc1."
        ) from error


class NoiseErasing:
    """(3, S, S) uint8 -> the same, a rectangle of 2 % to a third of it now normal noise of the
    pixels' own mean and deviation, which the model's normalisation makes a standard one."""

    def __init__(self, probability: float, mean: Sequence[float], std: Sequence[float]) -> None:
        """
        Args:
            probability: that there is one.
            mean: of the pixels, 0-255, per channel.
            std: the same.
        """
        from torchvision.transforms import v2

        area, shape = (0.02, 1 / 3), (0.3, 1 / 0.3)
        self._erase = v2.RandomErasing(probability, scale=area, ratio=shape, value="random")
        self._mean, self._std = (torch.tensor(list(v))[:, None, None] for v in (mean, std))

    def __call__(self, image: Tensor) -> Tensor:
        normed = self._erase((image - self._mean) / self._std)
        return (normed * self._std + self._mean).round().clamp(0, 255).to(torch.uint8)
