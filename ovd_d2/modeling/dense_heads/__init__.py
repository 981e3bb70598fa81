"""Heads that predict at every location of a feature pyramid."""

from .alignment import AlignmentLogits
from .atss import atss_assign
from .build import build_concept_head, build_grounding_head
from .candidates import Candidates
from .concept_head import ConceptHead, RegionOutputs
from .concept_inference import ConceptInference
from .concept_losses import ConceptLoss
from .grounding_head import GroundingHead
from .grounding_inference import GroundingInference, class_scores
from .grounding_losses import GroundingLoss
from .grounding_outputs import HeadOutputs
from .localization import LocalizationLoss, Matches
from .region_choice import RegionChoice
from .tower import GroundingBlock, GroundingTower

__all__ = [
    "AlignmentLogits",
    "Candidates",
    "ConceptHead",
    "ConceptInference",
    "ConceptLoss",
    "GroundingBlock",
    "GroundingHead",
    "GroundingInference",
    "GroundingLoss",
    "GroundingTower",
    "HeadOutputs",
    "LocalizationLoss",
    "Matches",
    "RegionChoice",
    "RegionOutputs",
    "atss_assign",
    "build_concept_head",
    "build_grounding_head",
    "class_scores",
]
