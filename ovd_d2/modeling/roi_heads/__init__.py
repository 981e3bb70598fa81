"""Box predictor and ROI heads whose classes are text."""

from .open_vocab_box_predictor import OpenVocabBoxPredictor
from .open_vocab_roi_heads import (
    OpenVocabCascadeROIHeads,
    OpenVocabRes5ROIHeads,
    OpenVocabROIHeads,
    OpenVocabROIHeadsMixin,
)
from .top_pairs_inference import top_pairs_inference

__all__ = [
    "OpenVocabBoxPredictor",
    "OpenVocabCascadeROIHeads",
    "OpenVocabROIHeads",
    "OpenVocabROIHeadsMixin",
    "OpenVocabRes5ROIHeads",
    "top_pairs_inference",
]
