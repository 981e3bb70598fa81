"""Region embeddings learn from a teacher's.

Letters: Ri teacher regions of image i, M regions over the batch, D embedding width,
F width of a region's features.
"""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ovd_d2.errors import OVDError
from ovd_d2.losses import (
    inter_embedding_relation_loss,
    l1_distillation_loss,
    l2_distillation_loss,
    mean_l1_distillation_loss,
)
from ovd_d2.losses.inter_embedding_relation import RELATION_CONVENTIONS
from ovd_d2.structures import Supervision

from .region_task import RegionTask

# Value of MODEL.REGION_DISTILLATION.LOSS -> (name of the loss, function).
LOSSES = {
    "l1": ("loss_distill_l1", l1_distillation_loss),
    "l1_mean": ("loss_distill_l1", mean_l1_distillation_loss),
    "l2": ("loss_distill_l2", l2_distillation_loss),
}


class RegionDistiller(RegionTask):
    """The weighted distillation losses of a batch: embedding by embedding, and (RKD) the relations
    among all of them. It has no parameters.

    It also writes the mean cosine between student and teacher to the event storage, as
    ``distill/cosine``: the number to watch, 1 for a perfect student.
    """

    kind = Supervision.TEACHER_REGION

    @configurable
    def __init__(
        self,
        *,
        weight: float,
        loss: str = "l1",
        relation_weight: float = 0.0,
        relation: str = "released",
    ):
        """
        Args:
            weight: factor on the loss of each embedding, >= 0; 0: none.
            loss: "l1" (ViLD), "l1_mean" (RKD) or "l2" (neither paper's).
            relation_weight: factor on :func:`inter_embedding_relation_loss`, >= 0; 0: none.
            relation: its convention, "released" or "paper".
        """
        super().__init__()
        if loss not in LOSSES:
            raise OVDError(
                f'MODEL.REGION_DISTILLATION.LOSS is "{loss}"; use "l1", "l1_mean" or "l2".'
            )
        if relation not in RELATION_CONVENTIONS:
            raise OVDError(
                f'MODEL.REGION_DISTILLATION.RELATION is "{relation}"; use "released" or "paper".'
            )
        if not (weight >= 0 and relation_weight >= 0 and weight + relation_weight > 0):
            raise OVDError(
                f"MODEL.REGION_DISTILLATION.WEIGHT is {weight} and RELATION_WEIGHT "
                f"{relation_weight}; a head that learns from a teacher needs one of them above 0 "
                "and none below."
            )
        self.weight = weight
        self.loss = loss
        self.relation_weight = relation_weight
        self.relation = relation

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        distillation = cfg.MODEL.REGION_DISTILLATION
        return {
            "weight": distillation.WEIGHT,
            "loss": distillation.LOSS,
            "relation_weight": distillation.RELATION_WEIGHT,
            "relation": distillation.RELATION,
        }

    def losses(
        self, predictor: nn.Module, features: Tensor, rows: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """``loss_distill_l1`` (or ``_l2``) and ``loss_distill_relation``, as far as their weights
        are above 0, weights applied; 0 with a gradient path if there is no row.

        Args:
            predictor: its ``cls_score`` is the student.
            features: (M, F) of the regions.
            rows: per image, with ``teacher_embedding`` (Ri, D) of any floating type.

        Raises:
            OVDError: rows without embeddings, or of another width than D.
        """
        student = predictor.cls_score.embed_for_teacher(features)
        teacher = [_embeddings_of(of_image) for of_image in rows if len(of_image)]
        teacher = torch.cat(teacher) if teacher else student.new_zeros(0, student.shape[1])
        losses = {}
        if self.weight:
            name, loss = LOSSES[self.loss]
            losses[name] = self.weight * loss(student, teacher)
        if self.relation_weight:
            loss = inter_embedding_relation_loss(student, teacher, self.relation)
            losses["loss_distill_relation"] = self.relation_weight * loss
        if len(teacher):
            with torch.no_grad():
                cosine = torch.cosine_similarity(student.float(), teacher.float(), dim=1).mean()
            get_event_storage().put_scalar("distill/cosine", cosine)
        return losses


def _embeddings_of(rows: Instances) -> Tensor:
    if not rows.has("teacher_embedding"):
        raise OVDError(
            "Target rows are tagged TEACHER_REGION but have no teacher_embedding: let the mapper "
            "attach them (DATASETS.REGION_STORE)."
        )
    return rows.teacher_embedding.float()
