"""Plain data that the rooms hand to each other."""

from .supervision import (
    Supervision,
    is_box_supervised,
    rows_with,
    supervision_of,
)

__all__ = ["Supervision", "is_box_supervised", "rows_with", "supervision_of"]
