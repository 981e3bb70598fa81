"""From the segments of image windows to scores of classes for every pixel (Xu et al. 2022,
"GroupViT", section 4.3, and the settings of the public code).

Letters: N windows, G segments of a window, K classes, D embedding width; H, W height and width of
the image; h, w those of a window.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ovd_d2.errors import OVDError
from ovd_d2.modeling.sliding_windows import window_starts

_WINDOWS_AT_ONCE = 16
_CLASSES_AT_ONCE = 256  # of the score map, so that a window's share of it stays small


class WindowSegments(NamedTuple):
    """What an encoder makes of N windows.

    Attributes:
        images: (N, D), L2-normalised, of the whole windows.
        segments: (N, G, D), L2-normalised.
        maps: (N, G, rows, columns) fp32, share of each patch in each segment.
    """

    images: Tensor
    segments: Tensor
    maps: Tensor


def segment_of_pixels(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, G, rows, columns) -> (N, h, w) int64: the largest segment of each pixel, maps being
    resized bilinearly first."""
    return F.interpolate(maps, size, mode="bilinear", align_corners=False).argmax(dim=1)


def segment_class_probabilities(
    images: Tensor, segments: Tensor, classes: Tensor, logit_scale: Tensor | float, top: int
) -> Tensor:
    """(N, G, K) fp32: the softmax over all classes times the softmax over the ``top`` classes of
    the whole image, others having 0. Rows do not add up to 1.

    Args:
        images: (N, D), L2-normalised.
        segments: (N, G, D), L2-normalised.
        classes: (K, D), L2-normalised.
        logit_scale: factor on the cosine (exp applied).
        top: how many classes an image may have.
    """
    best = (images @ classes.T).topk(min(top, len(classes)), dim=1).indices
    kept = torch.zeros(len(images), len(classes), dtype=torch.bool, device=images.device)
    kept.scatter_(1, best, True)
    logits = (logit_scale * segments @ classes.T).float()
    of_best = logits.masked_fill(~kept[:, None], -torch.inf).softmax(dim=2)
    return logits.softmax(dim=2) * of_best


def with_background(probabilities: Tensor, place: int, threshold: float) -> Tensor:
    """(N, G, K) -> (N, G, K + 1), background standing at ``place``: 1 for segments whose best class
    stays below the smaller of ``threshold`` and the window's largest probability, 0 for others."""
    best = probabilities.amax(dim=2)
    is_background = best < best.amax(dim=1, keepdim=True).clamp(max=threshold)
    before, behind = probabilities[..., :place], probabilities[..., place:]
    return torch.cat([before, is_background[..., None].to(probabilities), behind], dim=2)


class GroupSegmentation:
    """Slides a window over an image; each is decoded by itself, and scores are averaged."""

    def __init__(
        self,
        *,
        window: int = 448,
        stride: int = 224,
        top_classes: int = 5,
        background_threshold: float = 0.95,
    ) -> None:
        """
        Args:
            window: side in pixels; of an image that is smaller, its side.
            stride: distance between windows in pixels.
            top_classes: classes that a window may have.
            background_threshold: see :func:`with_background`.

        Raises:
            OVDError: a stride that leaves gaps.
        """
        if not 1 <= stride <= window:
            raise OVDError(
                f"MODEL.GROUPVIT.STRIDE_TEST is {stride}; it must be from 1 to WINDOW_TEST, "
                f"{window}."
            )
        self.window = window
        self.stride = stride
        self.top_classes = top_classes
        self.background_threshold = background_threshold

    def __call__(
        self,
        encode: Callable[[Tensor], WindowSegments],
        image: Tensor,
        classes: Tensor,
        logit_scale: Tensor | float,
        size: tuple[int, int],
        background: int | None = None,
    ) -> Tensor:
        """
        Args:
            encode: (N, 3, h, w) fp32 -> their segments; asked once for every window.
            image: (3, H, W) fp32, as ``encode`` wants it.
            classes: (K, D), L2-normalised, without a background.
            logit_scale: factor on the cosine (exp applied).
            size: (height, width) of the scores.
            background: place of the background among the classes; None: there is none, nor a
                threshold.

        Returns:
            (K, height, width) fp32, or K + 1 with a background: means over the windows of
            probabilities, 0..1, resized bilinearly.
        """
        height, width = image.shape[1:]
        tall, wide = min(self.window, height), min(self.window, width)
        places = [
            (y, x)
            for y in window_starts(height, tall, self.stride, shift_last=True)
            for x in window_starts(width, wide, self.stride, shift_last=True)
        ]
        tables, pixels = [], []
        for start in range(0, len(places), _WINDOWS_AT_ONCE):
            here = places[start : start + _WINDOWS_AT_ONCE]
            found = encode(torch.stack([image[:, y : y + tall, x : x + wide] for y, x in here]))
            tables.append(self.scores_of_segments(found, classes, logit_scale, background))
            pixels.append(segment_of_pixels(found.maps, (tall, wide)))
        return _painted(places, torch.cat(tables), torch.cat(pixels), (height, width), size)

    def scores_of_segments(
        self,
        found: WindowSegments,
        classes: Tensor,
        logit_scale: Tensor | float,
        background: int | None = None,
    ) -> Tensor:
        """(N, G, K) fp32 in 0..1, or K + 1 with a background; arguments as above."""
        scores = segment_class_probabilities(
            found.images, found.segments, classes, logit_scale, self.top_classes
        )
        if background is None:
            return scores
        return with_background(scores, background, self.background_threshold)


def _painted(
    places: Sequence[tuple[int, int]],
    tables: Tensor,
    pixels: Tensor,
    image_size: tuple[int, int],
    size: tuple[int, int],
) -> Tensor:
    """Scores (N, G, K) of segments as a map (K, height, width), mean over the windows."""
    tall, wide = pixels.shape[1:]
    counts = tables.new_zeros(image_size)
    for y, x in places:
        counts[y : y + tall, x : x + wide] += 1
    painted = tables.new_empty(tables.shape[2], *size)
    for part, out in zip(tables.split(_CLASSES_AT_ONCE, dim=2), painted.split(_CLASSES_AT_ONCE)):
        sums = tables.new_zeros(part.shape[2], *image_size)
        for (y, x), table, segments in zip(places, part, pixels):
            sums[:, y : y + tall, x : x + wide] += table.T[:, segments]
        sums = (sums / counts)[None]
        out.copy_(F.interpolate(sums, size, mode="bilinear", align_corners=False)[0])
    return painted
