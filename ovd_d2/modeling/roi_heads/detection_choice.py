"""The detection choice of ROI heads: that of their box predictors."""

from collections.abc import Sequence

import torch
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from torch import Tensor

from .score_fusion import ScoreRule


class BoxPredictorsChoice:
    """See :class:`~ovd_d2.modeling.detection_choice.DetectionChoice`; ``MODEL.ROI_HEADS`` and
    ``TEST`` say it at first."""

    def __init__(
        self,
        predictors: Sequence[FastRCNNOutputLayers],
        score_rule: ScoreRule | None,
        has_image_branch: bool,
    ) -> None:
        """
        Args:
            predictors: one, or one per cascade stage; all alike.
            score_rule: of the heads; None: the probabilities are the scores.
            has_image_branch: its probabilities are shares, whatever the predictors give.
        """
        self._predictors = predictors
        by_objectness = score_rule is not None and score_rule.combine == "objectness"
        self._shares = has_image_branch and by_objectness or not predictors[0].use_sigmoid_ce
        self._score_rule = score_rule

    @property
    def share_exponents(self) -> Tensor | None:
        if not self._shares:
            return None
        classes = self._predictors[0].vocabulary
        novel = [] if classes is None else list(classes.is_novel)
        if self._score_rule is None:
            return torch.ones(len(novel))
        return self._score_rule.share_exponents(novel)

    @property
    def score_threshold(self) -> float:
        return self._predictors[0].test_score_thresh

    @score_threshold.setter
    def score_threshold(self, value: float) -> None:
        for predictor in self._predictors:
            predictor.test_score_thresh = value

    @property
    def nms_threshold(self) -> float:
        return self._predictors[0].test_nms_thresh

    @property
    def max_detections(self) -> int:
        return self._predictors[0].test_topk_per_image

    @max_detections.setter
    def max_detections(self, value: int) -> None:
        for predictor in self._predictors:
            predictor.test_topk_per_image = value

    @property
    def found_classes(self) -> int | None:
        return self._predictors[0].found_classes

    @found_classes.setter
    def found_classes(self, value: int | None) -> None:
        for predictor in self._predictors:
            predictor.found_classes = value

    def threshold_for(self, score: float) -> float:
        return score
