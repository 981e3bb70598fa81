"""Pulling region embeddings towards those of an image-text teacher.

Letters: M regions over the batch that have a teacher embedding, D embedding width.
"""

import torch.nn.functional as F
from torch import Tensor

from ovd_d2.errors import OVDError


def l1_distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """ViLD's image loss (section 3.3): ``1/M sum_r || v_r - e_r ||_1``, e and v of L2 norm 1.

    The norm is *summed* over the D dimensions: ViLD's weight 0.5 belongs to this sum (DetPro
    writes weight 256 = 0.5 * 512 with a mean over elements). Both sides are normalised here, as
    in the released code, so half-precision teacher rows need no care.

    Args:
        student: (M, D) float, any norm; the gradient flows here.
        teacher: (M, D) float of any type and norm, rows not zero; no gradient.

    Returns:
        Scalar in the type of ``student``; 0 with a gradient path if M = 0.

    Raises:
        OVDError: the shapes differ.
    """
    student, teacher = unit_rows(student, teacher)
    if not len(student):
        return student.sum() * 0.0
    return (student - teacher).abs().sum(dim=1).mean()


def mean_l1_distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD's point-wise loss as its public code has it: ``1/(M D) sum_r || v_r - e_r ||_1``.

    The paper (section 3.2) writes the sum over D. The released weights (0.15 on COCO, 0.25 on
    LVIS, each times a hidden 100) belong to this mean.

    Arguments, result and errors as for :func:`l1_distillation_loss`.
    """
    return l1_distillation_loss(student, teacher) / student.shape[1]


def l2_distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """``1/M sum_r || v_r - e_r ||_2^2 = 1/M sum_r (2 - 2 cos(v_r, e_r))``. Not the paper's loss.

    Its gradient fades as an embedding comes near its target, where that of L1 keeps its size; in
    short trainings it went further. Values are smaller than those of L1 (at most 4, where L1
    reaches 2 sqrt(D)): give it a larger weight.

    Arguments, result and errors as for :func:`l1_distillation_loss`.
    """
    student, teacher = unit_rows(student, teacher)
    if not len(student):
        return student.sum() * 0.0
    return (student - teacher).square().sum(dim=1).mean()


def unit_rows(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both (M, D), rows of L2 norm 1, in the type of ``student``; no gradient to ``teacher``.

    Raises:
        OVDError: the shapes differ.
    """
    if student.shape != teacher.shape or student.dim() != 2:
        raise OVDError(
            f"The teacher's embeddings have shape {tuple(teacher.shape)}, the student's "
            f"{tuple(student.shape)}: use a region store of a teacher whose width is "
            "MODEL.OPEN_VOCAB.EMBED_DIM."
        )
    teacher = F.normalize(teacher.detach().to(student.dtype), dim=1)
    return F.normalize(student, dim=1), teacher
