"""Detectron2's ``GeneralizedRCNNWithTTA`` for models whose number of classes is not in the config.

It merges the detections of all augmented images by a score matrix of
``MODEL.ROI_HEADS.NUM_CLASSES`` columns, while an open-vocabulary model has as many classes as its
vocabulary. :func:`register` gives it a merge without columns, for such models only.
"""

import torch
from detectron2.layers import batched_nms
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ovd_d2.modeling.open_vocabulary import is_open_vocabulary

_detectron2s_merge = GeneralizedRCNNWithTTA._merge_detections
_LEAST_SCORE = 1e-8  # Detectron2's


def register() -> None:
    """Makes ``GeneralizedRCNNWithTTA`` work with our ROI heads; done when ovd_d2 is imported."""
    GeneralizedRCNNWithTTA._merge_detections = _merge_detections


def _merge_detections(
    self: GeneralizedRCNNWithTTA,
    all_boxes: Tensor,
    all_scores: list[Tensor],
    all_classes: list[Tensor],
    shape_hw: tuple[int, int],
) -> Instances:
    """As the method it replaces: NMS per class over (T, 4) boxes with T scores and classes."""
    if not is_open_vocabulary(self.model):
        return _detectron2s_merge(self, all_boxes, all_scores, all_classes, shape_hw)
    scores = all_boxes.new_zeros(len(all_boxes))
    classes = torch.zeros_like(scores, dtype=torch.int64)
    if all_scores:
        scores, classes = torch.stack(all_scores), torch.stack(all_classes)
    valid = all_boxes.isfinite().all(dim=1) & scores.isfinite() & (scores > _LEAST_SCORE)
    boxes, scores, classes = Boxes(all_boxes[valid]), scores[valid], classes[valid]
    boxes.clip(shape_hw)
    threshold, topk = self.cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST, self.cfg.TEST.DETECTIONS_PER_IMAGE
    keep = batched_nms(boxes.tensor, scores.float(), classes, threshold)
    keep = keep[:topk] if topk >= 0 else keep
    return Instances(
        shape_hw, pred_boxes=boxes[keep], scores=scores[keep], pred_classes=classes[keep]
    )
