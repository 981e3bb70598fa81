"""Decoders: from the maps of a backbone to one map of fine resolution."""

from .dpt import DPTDecoder, FusionBlock, ResidualUnit

__all__ = ["DPTDecoder", "FusionBlock", "ResidualUnit"]
