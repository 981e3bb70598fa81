"""Proposal generators."""

from .mixed_supervision_rpn import MixedSupervisionRPN
from .rpn_head_with_norm import RPNHeadWithNorm

__all__ = ["MixedSupervisionRPN", "RPNHeadWithNorm"]
