"""What each target row may teach: a per-row tag in Detectron2's ``gt_instances``.

Letters: Ri target rows of image i.
"""

from enum import IntEnum

import torch
from detectron2.structures import Instances
from torch import Tensor


class Supervision(IntEnum):
    """Value of the ``supervision`` field, (Ri,) int64, of an image's target ``Instances``.

    The field's name has no ``gt_`` prefix on purpose: Detectron2 copies every ``gt_*`` field onto
    each sampled proposal.
    """

    BOX = 0
    """A human box with its class; trains RPN, box head and mask head."""
    IMAGE_LABEL = 1
    """An image-level label with a pseudo box; says nothing about where objects are not."""
    TEACHER_REGION = 2
    """A region with a teacher's embedding in the field ``teacher_embedding`` (Ri, D); no class."""


def supervision_of(targets: Instances) -> Tensor:
    """(Ri,) int64 tags of ``targets``; all BOX where the mapper set none."""
    if targets.has("supervision"):
        return targets.supervision
    return torch.full(
        (len(targets),), Supervision.BOX, dtype=torch.int64, device=targets.gt_boxes.device
    )


def rows_with(targets: Instances, kind: Supervision) -> Instances:
    """The rows of one image's ``targets`` tagged ``kind``; ``targets`` itself if it has no tags
    and ``kind`` is BOX."""
    if not targets.has("supervision"):
        return targets if kind == Supervision.BOX else targets[:0]
    return targets[targets.supervision == kind]


def is_box_supervised(targets: Instances) -> bool:
    """Whether regions without a box count as background in this image.

    True for images with BOX rows, and for images without any row or with teacher regions alone
    (annotated, nothing there); False where all the image offers is image-level labels.
    """
    if not targets.has("supervision"):
        return True
    tags = targets.supervision
    labelled = (tags == Supervision.IMAGE_LABEL).any()
    return bool(~labelled | (tags == Supervision.BOX).any())
