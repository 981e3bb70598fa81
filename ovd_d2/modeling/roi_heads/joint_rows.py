"""One pooling pass for everything that a batch teaches.

Letters: Ri rows of image i, R rows over the batch.
"""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor


class JointRows:
    """Sampled proposals and further rows (teacher regions, pseudo boxes) in one pass through
    pooler and box head, and apart again afterwards.

    Attributes:
        boxes: per image the proposals' boxes, then those of the further rows, group by group.
    """

    def __init__(self, proposals: Sequence[Instances], *groups: Sequence[Instances]) -> None:
        """
        Args:
            proposals: per image, with ``proposal_boxes``.
            groups: each, per image, with ``gt_boxes``; may be empty.
        """
        per_image = list(zip(proposals, *groups))
        self._sizes = [len(part) for image in per_image for part in image]
        self._num_groups = 1 + len(groups)
        self._any = any(len(rows) for group in groups for rows in group)
        self.boxes = [
            Boxes.cat([p.proposal_boxes, *(rows.gt_boxes for rows in more if len(rows))])
            if any(map(len, more))
            else p.proposal_boxes
            for p, *more in per_image
        ]

    def split(self, rows: Tensor) -> list[Tensor]:
        """(R, ...) rows in the order of ``boxes`` -> those of all proposals, of the first group,
        of the second ..."""
        if not self._any:
            return [rows, *(rows[:0] for _ in range(self._num_groups - 1))]
        parts = rows.split(self._sizes)
        return [torch.cat(parts[i :: self._num_groups]) for i in range(self._num_groups)]
