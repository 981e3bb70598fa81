"""Pure losses: tensors in, scalar out; no config, no storage."""

from .classification import (
    federated_class_mask,
    masked_softmax_cross_entropy,
    weighted_sigmoid_cross_entropy,
)
from .contrastive import symmetric_contrastive_loss
from .region_distillation import l1_distillation_loss, l2_distillation_loss

__all__ = [
    "federated_class_mask",
    "l1_distillation_loss",
    "l2_distillation_loss",
    "masked_softmax_cross_entropy",
    "symmetric_contrastive_loss",
    "weighted_sigmoid_cross_entropy",
]
