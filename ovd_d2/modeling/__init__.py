"""Everything registered in Detectron2's registries."""

from ovd_d2.modeling.open_vocabulary import (
    OpenVocabularyModel,
    get_vocabulary,
    is_open_vocabulary,
    set_vocabulary,
)

from . import test_time_augmentation
from .backbone import build_timm_fpn_backbone
from .meta_arch import CLIP, GLIP, DetCLIP, GroupViT, HuggingFaceDetector, LSeg
from .proposal_generator import MixedSupervisionRPN
from .roi_heads import (
    OpenVocabBoxPredictor,
    OpenVocabCascadeROIHeads,
    OpenVocabRes5ROIHeads,
    OpenVocabROIHeads,
)

test_time_augmentation.register()

__all__ = [
    "CLIP",
    "GLIP",
    "DetCLIP",
    "GroupViT",
    "HuggingFaceDetector",
    "LSeg",
    "MixedSupervisionRPN",
    "OpenVocabBoxPredictor",
    "OpenVocabCascadeROIHeads",
    "OpenVocabROIHeads",
    "OpenVocabRes5ROIHeads",
    "build_timm_fpn_backbone",
    "OpenVocabularyModel",
    "get_vocabulary",
    "is_open_vocabulary",
    "set_vocabulary",
]
