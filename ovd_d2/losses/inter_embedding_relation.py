"""Region embeddings keep the relations that a teacher sees between the regions.

Letters: M regions of all images of a batch, D embedding width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ovd_d2.errors import OVDError

from .region_distillation import unit_rows

RELATION_CONVENTIONS = ("released", "paper")


def inter_embedding_relation_loss(
    student: Tensor, teacher: Tensor, convention: str = "released"
) -> Tensor:
    """RKD's inter-embedding relationship matching (section 3.2; IRM).

    ``S = v v^T`` and ``T = e e^T`` are the (M, M) cosines among the regions of *all* images
    together; their rows are normalised and compared by the squared Frobenius norm. Paper and
    public code differ, and a weight belongs to one of them only:

    * "paper": rows of L2 norm 1, divided by M^2;
    * "released": rows of L1 norm 1 (sum of absolute values), not divided by anything.

    Args:
        student: (M, D) float, any norm; the gradient flows here.
        teacher: (M, D) float of any type and norm, rows not zero; no gradient.
        convention: "released" or "paper".

    Returns:
        Scalar in the type of ``student``; 0 with a gradient path if M = 0.

    Raises:
        OVDError: the shapes differ, or an unknown convention.
    """
    if convention not in RELATION_CONVENTIONS:
        raise OVDError(
            f'MODEL.REGION_DISTILLATION.RELATION is "{convention}"; use "released" or "paper".'
        )
    student, teacher = unit_rows(student, teacher)
    if not len(student):
        return student.sum() * 0.0
    norm = 1 if convention == "released" else 2
    with torch.autocast(student.device.type, enabled=False):  # cosines want all their digits
        difference = _relations(student, norm) - _relations(teacher, norm)
    loss = difference.square().sum()
    return loss if convention == "released" else loss / len(student) ** 2


def _relations(rows: Tensor, norm: int) -> Tensor:
    """(M, D) unit rows -> (M, M) cosines, each row of norm 1."""
    return F.normalize(rows @ rows.T, p=float(norm), dim=1)
