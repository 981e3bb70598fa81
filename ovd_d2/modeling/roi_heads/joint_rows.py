"""One pooling pass for everything that a batch teaches.

Letters: Ri rows of image i, R rows over the batch, C x P x P a pooled region.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ovd_d2.errors import OVDError
from ovd_d2.structures import Supervision

from .region_task import RegionTask

BOX = Supervision.BOX


class JointRows:
    """Sampled proposals and the target rows of region tasks (teacher regions, pseudo boxes) in one
    pass through pooler and box head, and apart again afterwards.

    Attributes:
        of: per kind and image; the sampled proposals are BOX.
        boxes: per image the proposals' boxes, then those of the further rows, kind by kind.
    """

    def __init__(
        self,
        tasks: Sequence[RegionTask],
        proposals: Sequence[Instances],
        further: Mapping[Supervision, Sequence[Instances]],
    ) -> None:
        """
        Args:
            tasks: what is to be learned.
            proposals: per image, with ``proposal_boxes``.
            further: per kind and image, with ``gt_boxes``; may be empty.
        """
        per_image = list(zip(proposals, *further.values()))
        self.of = {BOX: proposals, **further}
        self._tasks = tasks
        self._sizes = [len(part) for image in per_image for part in image]
        self._any = any(len(rows) for group in further.values() for rows in group)
        self.boxes = [
            Boxes.cat([p.proposal_boxes, *(rows.gt_boxes for rows in more if len(rows))])
            if any(map(len, more))
            else p.proposal_boxes
            for p, *more in per_image
        ]

    def split(self, x: Tensor) -> dict[Supervision, Tensor]:
        """(R, ...) in the order of ``boxes`` -> the same by kind."""
        if not self._any:
            return {kind: x if kind == BOX else x[:0] for kind in self.of}
        parts = x.split(self._sizes)
        return {kind: torch.cat(parts[i :: len(self.of)]) for i, kind in enumerate(self.of)}

    def together(
        self, head: Callable[[Tensor], Tensor], pooled: Mapping[Supervision, Tensor]
    ) -> dict[Supervision, Tensor]:
        """What ``head`` makes in one pass of the ``pooled`` regions that the text branch sees."""
        seen = {BOX, *(task.kind for task in self._tasks if not task.has_head)}
        seen = {kind: x for kind, x in pooled.items() if kind in seen}
        x = head(torch.cat(list(seen.values())))
        return dict(zip(seen, x.split([len(part) for part in seen.values()])))

    def task_losses(
        self, predictor: nn.Module, x: Mapping[Supervision, Tensor], has_head: bool
    ) -> dict[str, Tensor]:
        """Of the tasks with or without a head, see :meth:`RegionTask.losses`; OVDError if two
        give a loss of one name."""
        losses = {}
        for task in self._tasks:
            if task.has_head == has_head:
                more = task.losses(predictor, x[task.kind], self.of[task.kind])
                for name in more.keys() & losses.keys():
                    raise OVDError(
                        f"Two region tasks give {name}: rename that of {type(task).__name__}."
                    )
                losses.update(more)
        return losses
