"""Score maps of images that are larger than a network's window, at several scales.

Letters: N images, C channels, K classes, H and W sides of the image.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from ovd_d2.errors import OVDError

ScoreMaps = Callable[[Tensor], Tensor]  # (N, C, H, W) -> (N, K, H, W)


def window_starts(length: int, window: int, stride: int, shift_last: bool = False) -> list[int]:
    """Where windows along one side begin, so that they cover it.

    Args:
        length: of the side, in pixels.
        window: of a window.
        stride: between two of them.
        shift_last: the last window ends where the side does; else it stays on the grid and may
            reach beyond it.
    """
    count = max(0, math.ceil((length - window) / stride)) + 1
    starts = [place * stride for place in range(count)]
    return [min(start, max(length - window, 0)) for start in starts] if shift_last else starts


def sliding_scores(
    network: ScoreMaps,
    images: Tensor,
    *,
    window: int,
    stride: int,
    pad_value: float = 0.0,
) -> Tensor:
    """Score maps of square windows on a grid, averaged where they overlap.

    Args:
        network: what scores one window.
        images: (N, C, H, W) float.
        window: its side in pixels.
        stride: between two windows.
        pad_value: what fills, at the right and at the bottom, a window that reaches beyond the
            image.

    Returns:
        (N, K, H, W).
    """
    height, width = images.shape[-2:]
    total: Tensor | None = None
    counts = images.new_zeros(height, width)
    for top in window_starts(height, window, stride):
        for left in window_starts(width, window, stride):
            place = (..., slice(top, top + window), slice(left, left + window))
            crop = images[place]
            h, w = crop.shape[-2:]
            if (h, w) != (window, window):
                crop = F.pad(crop, (0, window - w, 0, window - h), value=pad_value)
            found = network(crop)[..., :h, :w]
            if total is None:
                total = found.new_zeros(*found.shape[:2], height, width)
            total[place] += found
            counts[place] += 1
    return total.div_(counts)


def with_flip(network: ScoreMaps) -> ScoreMaps:
    """A network that adds the scores of the mirrored image, mirrored back (a sum, no mean)."""
    return lambda images: network(images).add_(network(images.flip(-1)).flip(-1))


@dataclass(frozen=True)
class MultiScaleScores:
    """Scores of an image at several scales, by windows, with and without a flip, added up.

    The rule of the public code of LSeg (PyTorch-Encoding's): at every scale the *long* side
    becomes ceil(base * scale), the other int(side * long / longside + 0.5); windows stay on their
    grid, overlaps are averaged; flips and scales are added. Logits in, logits out.

    Attributes:
        scales: factors on ``base``.
        base: long side at scale 1, in pixels.
        window: side of a window.
        stride: between two windows.
        flip: every window mirrored too.
    """

    scales: tuple[float, ...] = (1.0,)
    base: int = 520
    window: int = 480
    stride: int = 320
    flip: bool = False

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0 or not 0 < self.stride <= self.window:
            raise OVDError(
                f"scales {list(self.scales)} with windows of {self.window} at every {self.stride} "
                "pixels leave gaps: give scales above 0 and a stride of 1 to the window's side."
            )

    def __call__(
        self, network: ScoreMaps, images: Tensor, size: tuple[int, int], pad_value: float = 0.0
    ) -> Tensor:
        """
        Args:
            network: what scores one window.
            images: (N, C, H, W) float.
            size: height and width of the result.
            pad_value: see :func:`sliding_scores`.

        Returns:
            (N, K, *size); resized bilinear with aligned corners, as the images are.
        """
        network = with_flip(network) if self.flip else network
        total: Tensor | None = None
        for scale in self.scales:
            found = sliding_scores(
                network,
                _resized(images, self._size(images.shape[-2], images.shape[-1], scale)),
                window=self.window,
                stride=self.stride,
                pad_value=pad_value,
            )
            found = _resized(found, size)
            total = found if total is None else total.add_(found)
        return total

    def _size(self, height: int, width: int, scale: float) -> tuple[int, int]:
        long = math.ceil(self.base * scale)
        if height > width:
            return long, int(width * long / height + 0.5)
        return int(height * long / width + 0.5), long


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)
