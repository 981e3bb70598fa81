"""Rows for boxes that nobody annotated, behind those of an image's annotations.

Letter: Ri target rows of image i.
"""

from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances, Keypoints
from torch import Tensor

from ovd_d2.errors import OVDError
from ovd_d2.structures import PartialMasks, Supervision, supervision_of


def no_targets(image_size: tuple[int, int]) -> Instances:
    """Targets of an image without annotations.

    Args:
        image_size: (height, width).
    """
    targets = Instances(image_size)
    targets.gt_boxes = Boxes(torch.zeros(0, 4))
    targets.gt_classes = torch.zeros(0, dtype=torch.int64)
    return targets


def boxes_in_frame(
    boxes: Tensor, transforms: T.Transform, image_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Boxes of an image in the frame of the augmented image.

    Args:
        boxes: (n, 4) xyxy in pixels of the original image.
        transforms: what the image went through.
        image_size: (height, width) of the augmented image.

    Returns:
        (m, 4) float32 xyxy, clipped to the augmented image, without those of which nothing is
        left; and (n,) bool, which ones stayed.
    """
    if not len(boxes):
        return boxes.float().reshape(0, 4), torch.zeros(0, dtype=torch.bool)
    moved = transforms.apply_box(boxes.double().numpy())
    inside = Boxes(torch.from_numpy(np.asarray(moved, dtype=np.float32)))
    inside.clip(image_size)
    left = inside.nonempty(threshold=1e-5)
    return inside.tensor[left], left


def followed_by(targets: Instances, boxes: Tensor, classes: Tensor, kind: Supervision) -> Instances:
    """The rows of ``targets``, then one per box.

    Args:
        targets: ``gt_boxes`` and any of Detectron2's fields; with ``supervision`` or without.
        boxes: (n, 4) float32 xyxy in the frame of ``targets``.
        classes: (n,) int64.
        kind: of the new rows.

    Returns:
        (Ri + n,) rows with ``supervision`` (int64): what ``targets`` says, BOX if it does not,
        then ``kind``. New rows have no mask, keypoints of 0, and 0 in fields of other names.

    Raises:
        OVDError: ``targets`` has a field of unknown kind.
    """
    rows = Instances(targets.image_size)
    for name, value in targets.get_fields().items():
        rows.set(name, _extended(name, value, boxes, classes))
    before = supervision_of(targets)
    rows.supervision = torch.cat([before, before.new_full((len(boxes),), int(kind))])
    return rows


def _extended(name: str, value: Any, boxes: Tensor, classes: Tensor) -> Any:
    """A field of the targets, with rows for ``boxes`` behind it."""
    if name == "gt_boxes":
        return Boxes(torch.cat([value.tensor.float(), boxes]))
    if name == "gt_classes":
        return torch.cat([value, classes.to(value)])
    if name == "gt_masks":
        return PartialMasks.followed_by_none(value, len(boxes)) if len(boxes) else value
    if isinstance(value, Keypoints):
        tensor = value.tensor
        return Keypoints(torch.cat([tensor, tensor.new_zeros(len(boxes), *tensor.shape[1:])]))
    if isinstance(value, Tensor):
        return torch.cat([value, value.new_zeros(len(boxes), *value.shape[1:])])
    raise OVDError(
        f"Target field '{name}' is a {type(value).__name__}, to which no rows of teacher regions "
        "or image labels can be appended: leave it out, or append them in a mapper of your own "
        "(INPUT.MAPPER)."
    )
