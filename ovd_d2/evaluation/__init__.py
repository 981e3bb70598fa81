"""Evaluators that report base and novel classes apart."""

from ovd_d2.evaluation.build import build_evaluator, check_evaluator
from ovd_d2.evaluation.class_agnostic import ClassAgnosticEvaluator
from ovd_d2.evaluation.coco_open_vocab import COCOOpenVocabEvaluator
from ovd_d2.evaluation.few_shot_segmentation import FewShotSegmentationEvaluator
from ovd_d2.evaluation.linear_probe_evaluator import LinearProbeEvaluator
from ovd_d2.evaluation.lvis_open_vocab import LVISOpenVocabEvaluator
from ovd_d2.evaluation.phrase_grounding import PhraseGroundingEvaluator
from ovd_d2.evaluation.presence import PresenceEvaluator
from ovd_d2.evaluation.referring_expressions import ReferringExpressionEvaluator
from ovd_d2.evaluation.semantic_segmentation import OpenVocabSemSegEvaluator
from ovd_d2.evaluation.zero_shot_classification import ZeroShotClassificationEvaluator

__all__ = [
    "COCOOpenVocabEvaluator",
    "ClassAgnosticEvaluator",
    "FewShotSegmentationEvaluator",
    "LVISOpenVocabEvaluator",
    "LinearProbeEvaluator",
    "OpenVocabSemSegEvaluator",
    "PhraseGroundingEvaluator",
    "PresenceEvaluator",
    "ReferringExpressionEvaluator",
    "ZeroShotClassificationEvaluator",
    "build_evaluator",
    "check_evaluator",
]
