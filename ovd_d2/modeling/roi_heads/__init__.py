"""Box predictor and ROI heads whose classes are text."""

from .blocked_scores import BlockedScores
from .heads_with_norm import BoxHeadWithNorm, MaskHeadWithNorm
from .image_branch import IMAGE_BRANCH_REGISTRY, DistilledImageBranch, LabelledImageBranch
from .open_vocab_box_predictor import OpenVocabBoxPredictor
from .open_vocab_mixin import OpenVocabROIHeadsMixin
from .open_vocab_roi_heads import (
    OpenVocabCascadeROIHeads,
    OpenVocabRes5ROIHeads,
    OpenVocabROIHeads,
)
from .region_distiller import RegionDistiller
from .region_task import REGION_TASK_REGISTRY, RegionTask
from .score_fusion import ScoreRule
from .teacher_on_crops import TeacherOnCrops
from .teacher_tail import TeacherTailBranch
from .top_pairs_inference import top_pairs_inference

__all__ = [
    "IMAGE_BRANCH_REGISTRY",
    "REGION_TASK_REGISTRY",
    "BlockedScores",
    "BoxHeadWithNorm",
    "DistilledImageBranch",
    "LabelledImageBranch",
    "MaskHeadWithNorm",
    "OpenVocabBoxPredictor",
    "OpenVocabCascadeROIHeads",
    "OpenVocabROIHeads",
    "OpenVocabROIHeadsMixin",
    "OpenVocabRes5ROIHeads",
    "RegionDistiller",
    "RegionTask",
    "ScoreRule",
    "TeacherOnCrops",
    "TeacherTailBranch",
    "top_pairs_inference",
]
