"""Which names the class numbers of target rows count: a per-row mark in ``gt_instances``.

Letter: Ri target rows of image i.
"""

import hashlib
from collections.abc import Sequence

import torch
from detectron2.structures import Instances

# (Ri,) int64. No ``gt_`` prefix, as for ``supervision``: proposals need no copy of it.
CLASS_NUMBERING = "class_numbering"


def numbering_of(names: Sequence[str]) -> int:
    """Digest of class names in their order, a non-negative int64; the same in every process."""
    digest = hashlib.sha256("\n".join(names).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def mark_numbering(targets: Instances, numbering: int) -> None:
    """Says of all rows of ``targets``, in place, that ``gt_classes`` are places in the names whose
    :func:`numbering_of` is ``numbering``. Rows without the mark have the numbers of their data
    set."""
    marks = torch.full((len(targets),), numbering, dtype=torch.int64)
    targets.set(CLASS_NUMBERING, marks.to(targets.gt_classes.device))
