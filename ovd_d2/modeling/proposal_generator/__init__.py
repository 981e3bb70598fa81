"""Proposal generators."""

from .mixed_supervision_rpn import MixedSupervisionRPN

__all__ = ["MixedSupervisionRPN"]
