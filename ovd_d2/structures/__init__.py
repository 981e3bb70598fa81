"""Plain data that the rooms hand to each other."""

from .region_embeddings import RegionEmbeddings
from .supervision import (
    Supervision,
    is_box_supervised,
    rows_with,
    supervision_of,
)

__all__ = ["RegionEmbeddings", "Supervision", "is_box_supervised", "rows_with", "supervision_of"]
