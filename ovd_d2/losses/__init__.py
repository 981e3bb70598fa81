"""Pure losses: tensors in, scalar out; no config, no storage."""

from .classification import (
    federated_class_mask,
    masked_softmax_cross_entropy,
    weighted_sigmoid_cross_entropy,
)
from .contrastive import symmetric_contrastive_loss
from .grounding import (
    between_pixel_centres,
    centerness_loss,
    centerness_targets,
    token_focal_loss,
    weighted_giou_loss,
)
from .image_label import pseudo_box_loss
from .inter_embedding_relation import inter_embedding_relation_loss
from .multi_label_contrastive import multi_label_contrastive_loss
from .pixel_classification import pixel_cross_entropy
from .region_concept import concept_focal_loss
from .region_distillation import (
    l1_distillation_loss,
    l2_distillation_loss,
    mean_l1_distillation_loss,
)
from .set_prediction import (
    matched_box_losses,
    soft_token_cross_entropy,
    two_column_focal_loss,
)
from .word_region import image_to_text_similarity, set_similarity, smoothed_contrastive_loss

__all__ = [
    "between_pixel_centres",
    "centerness_loss",
    "centerness_targets",
    "concept_focal_loss",
    "federated_class_mask",
    "image_to_text_similarity",
    "inter_embedding_relation_loss",
    "l1_distillation_loss",
    "l2_distillation_loss",
    "masked_softmax_cross_entropy",
    "matched_box_losses",
    "mean_l1_distillation_loss",
    "multi_label_contrastive_loss",
    "pixel_cross_entropy",
    "pseudo_box_loss",
    "set_similarity",
    "smoothed_contrastive_loss",
    "soft_token_cross_entropy",
    "symmetric_contrastive_loss",
    "token_focal_loss",
    "two_column_focal_loss",
    "weighted_giou_loss",
    "weighted_sigmoid_cross_entropy",
]
