"""Plain data that the rooms hand to each other."""

from .grounding import CaptionTokens, TokenSpans
from .partial_masks import PartialMasks
from .region_embeddings import RegionEmbeddings
from .supervision import (
    Supervision,
    is_box_supervised,
    rows_with,
    supervision_of,
)

__all__ = [
    "CaptionTokens",
    "PartialMasks",
    "RegionEmbeddings",
    "Supervision",
    "TokenSpans",
    "is_box_supervised",
    "rows_with",
    "supervision_of",
]
