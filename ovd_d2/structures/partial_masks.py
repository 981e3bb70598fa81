"""Masks of target rows of which some have none.

Letters: Ri rows, H x W pixels.
"""

import torch
from detectron2.structures import BitMasks, PolygonMasks
from torch import Tensor

from ovd_d2.errors import OVDError


class PartialMasks:
    """``gt_masks`` for rows with and rows without a mask, without storage for the latter.

    300 teacher regions with empty bit masks would be 300 MB on a 1024 x 1024 image. Indexing with
    rows that all have a mask gives the plain Detectron2 structure back, so the mask head, which is
    trained on BOX rows, sees what it always sees.
    """

    def __init__(self, masks: BitMasks | PolygonMasks, index: Tensor) -> None:
        """
        Args:
            masks: those that there are.
            index: (Ri,) int64, position of each row's mask in ``masks``; -1 for none.
        """
        self._masks = masks
        self._index = index

    @classmethod
    def followed_by_none(
        cls, masks: "BitMasks | PolygonMasks | PartialMasks", count: int
    ) -> "PartialMasks":
        """``masks`` for the first rows, then ``count`` rows without one."""
        partial = isinstance(masks, PartialMasks)
        before = masks._index if partial else torch.arange(len(masks))
        index = torch.cat([before, before.new_full((count,), -1)])
        return cls(masks._masks if partial else masks, index)

    def __len__(self) -> int:
        """Ri, the rows with and without a mask."""
        return len(self._index)

    def __getitem__(self, rows: int | slice | Tensor) -> "BitMasks | PolygonMasks | PartialMasks":
        """The chosen rows: a Detectron2 structure if all of them have a mask."""
        if isinstance(rows, int):
            rows = slice(rows, rows + 1) if rows != -1 else slice(rows, None)
        if isinstance(rows, Tensor):
            rows = rows.to(self._index.device)
        index = self._index[rows]
        return PartialMasks(self._masks, index) if (index < 0).any() else self._masks[index]

    def to(self, *args: torch.device | str, **kwargs: torch.device | str) -> "PartialMasks":
        """On another device; the rows stay where masks of their kind keep their indices."""
        masks = self._masks.to(*args, **kwargs)
        index = self._index.to(masks.tensor.device) if isinstance(masks, BitMasks) else self._index
        return PartialMasks(masks, index)

    @property
    def device(self) -> torch.device:
        return self._masks.device

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)
        raise OVDError(
            f"Some target rows have no mask, so {name} of all of them cannot be had: take the BOX "
            "rows first (ovd_d2.structures.rows_with), as the open-vocabulary heads do."
        )
