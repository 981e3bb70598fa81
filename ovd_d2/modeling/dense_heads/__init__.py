"""Heads that predict at every location of a feature pyramid."""

from .alignment import AlignmentLogits
from .atss import atss_assign
from .build import build_grounding_head
from .grounding_head import GroundingHead
from .grounding_inference import GroundingInference, class_scores
from .grounding_losses import GroundingLoss
from .grounding_outputs import Candidates, HeadOutputs
from .tower import GroundingBlock, GroundingTower

__all__ = [
    "AlignmentLogits",
    "Candidates",
    "GroundingBlock",
    "GroundingHead",
    "GroundingInference",
    "GroundingLoss",
    "GroundingTower",
    "HeadOutputs",
    "atss_assign",
    "build_grounding_head",
    "class_scores",
]
