"""Region embeddings learn from a teacher's.

Letters: Ri teacher regions of image i, M regions over the batch, D embedding width.
"""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ovd_d2.errors import OVDError
from ovd_d2.losses import l1_distillation_loss, l2_distillation_loss

LOSSES = {"l1": l1_distillation_loss, "l2": l2_distillation_loss}


class RegionDistiller(nn.Module):
    """The weighted distillation loss of a batch; has no parameters.

    It also writes the mean cosine between student and teacher to the event storage, as
    ``distill/cosine``: the number to watch, 1 for a perfect student.
    """

    @configurable
    def __init__(self, *, weight: float, loss: str = "l1"):
        """
        Args:
            weight: factor on the loss, > 0.
            loss: "l1" (ViLD) or "l2" (not the paper's).
        """
        super().__init__()
        if loss not in LOSSES:
            raise OVDError(f'MODEL.REGION_DISTILLATION.LOSS is "{loss}"; use "l1" or "l2".')
        if not weight > 0:
            raise OVDError(
                f"MODEL.REGION_DISTILLATION.WEIGHT is {weight}; a head that learns from a teacher "
                "needs one above 0."
            )
        self.weight = weight
        self.loss = loss

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        distillation = cfg.MODEL.REGION_DISTILLATION
        return {"weight": distillation.WEIGHT, "loss": distillation.LOSS}

    def forward(self, student: Tensor, regions: Sequence[Instances]) -> dict[str, Tensor]:
        """``loss_distill_l1`` (or ``_l2``), weight applied; 0 with a gradient path if M = 0.

        Args:
            student: (M, D) L2-normalised region embeddings.
            regions: per image the rows of TEACHER_REGION, with ``teacher_embedding`` (Ri, D) of
                any floating type, in the order of ``student``; M is the sum of Ri.

        Raises:
            OVDError: rows without embeddings, or of another width than D.
        """
        teacher = [_embeddings_of(rows) for rows in regions if len(rows)]
        teacher = torch.cat(teacher) if teacher else student.new_zeros(0, student.shape[1])
        loss = LOSSES[self.loss](student, teacher)
        if len(teacher):
            with torch.no_grad():
                cosine = torch.cosine_similarity(student.float(), teacher.float(), dim=1).mean()
            get_event_storage().put_scalar("distill/cosine", cosine)
        return {f"loss_distill_{self.loss}": self.weight * loss}


def _embeddings_of(rows: Instances) -> Tensor:
    if not rows.has("teacher_embedding"):
        raise OVDError(
            "Target rows are tagged TEACHER_REGION but have no teacher_embedding: let the mapper "
            "attach them (DATASETS.REGION_STORE)."
        )
    return rows.teacher_embedding.float()


class JointRows:
    """Sampled proposals and teacher regions in one pooling pass, and apart again afterwards.

    Attributes:
        boxes: per image the proposals' boxes, then the regions'.
    """

    def __init__(self, proposals: Sequence[Instances], regions: Sequence[Instances]) -> None:
        """
        Args:
            proposals: per image, with ``proposal_boxes``.
            regions: per image, with ``gt_boxes``; may be empty.
        """
        self._sizes = [n for p, r in zip(proposals, regions) for n in (len(p), len(r))]
        self.num_regions = sum(self._sizes[1::2])
        self.boxes = [
            Boxes.cat([p.proposal_boxes, r.gt_boxes]) if len(r) else p.proposal_boxes
            for p, r in zip(proposals, regions)
        ]

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows in the order of ``boxes`` -> rows of all proposals, rows of all regions."""
        if not self.num_regions:
            return rows, rows[:0]
        parts = rows.split(self._sizes)
        return torch.cat(parts[0::2]), torch.cat(parts[1::2])
