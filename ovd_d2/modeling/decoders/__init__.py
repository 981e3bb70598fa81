"""Decoders: from the maps of a backbone to one map of fine resolution, or to object queries."""

from .deformable_transformer import DeformableTransformer, ImageQueries
from .dpt import DPTDecoder, FusionBlock, ResidualUnit
from .feature_levels import FeatureLevels
from .query_heads import QueryHeads

__all__ = [
    "DPTDecoder",
    "DeformableTransformer",
    "FeatureLevels",
    "FusionBlock",
    "ImageQueries",
    "QueryHeads",
    "ResidualUnit",
]
