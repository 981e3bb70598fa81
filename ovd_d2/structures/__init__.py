"""Plain data that the rooms hand to each other."""

from .partial_masks import PartialMasks
from .region_embeddings import RegionEmbeddings
from .supervision import (
    Supervision,
    is_box_supervised,
    rows_with,
    supervision_of,
)

__all__ = [
    "PartialMasks",
    "RegionEmbeddings",
    "Supervision",
    "is_box_supervised",
    "rows_with",
    "supervision_of",
]
