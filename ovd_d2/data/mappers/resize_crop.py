"""A crop out of an image of another size, as DETR's descendants augment (Carion et al. 2020,
appendix A.4; MDETR, where a crop keeps what the caption names)."""

from collections.abc import Sequence

import numpy as np
from detectron2.data import transforms as T

_TRIES = 100


class RandomCropKeepingBoxes(T.RandomCrop):
    """Detectron2's crop of type "absolute_range", drawn anew as long as it misses a box; the last
    of 100 is taken as it is. A box of which a part is inside is kept, cut."""

    def __init__(self, least: int, most: int) -> None:
        """
        Args:
            least: pixels of a side, at least; or the image's.
            most: at most.
        """
        super().__init__("absolute_range", (least, most))

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None) -> T.Transform:
        """
        Args:
            image: (H, W, C).
            boxes: (Ri, 4) x0 y0 x1 y1 in pixels; None: nothing is to be kept.
        """
        for _ in range(_TRIES):
            crop = super().get_transform(image)
            if boxes is None or _inside(np.asarray(boxes), crop).all():
                break
        return crop


def _inside(boxes: np.ndarray, crop: T.CropTransform) -> np.ndarray:
    """(Ri,) bool: some part of the box is in the crop."""
    first = np.maximum(boxes[:, :2], [crop.x0, crop.y0])
    last = np.minimum(boxes[:, 2:], [crop.x0 + crop.w, crop.y0 + crop.h])
    return (last > first).all(axis=1)


def resize_and_crop(
    probability: float, short_sides: Sequence[int], sides: tuple[int, int]
) -> T.Augmentation:
    """With ``probability`` the image's short side becomes one of ``short_sides``, and a crop of
    ``sides``, least and most pixels of each side, is cut out of it."""
    largest = 1 << 30  # no limit for the long side
    steps = [T.ResizeShortestEdge(short_sides, largest, "choice"), RandomCropKeepingBoxes(*sides)]
    return T.RandomApply(T.AugmentationList(steps), prob=probability)
