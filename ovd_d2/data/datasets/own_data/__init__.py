"""Anybody's own labelled images, in the formats that label tools write, read without a traceback
whatever is in them: what cannot be used is left out, counted and named.

A reader per format makes :class:`Labels`; :func:`check_labels` opens the images and gives the COCO
content that every other part of this package takes.
"""

from .checking import Checked, check_labels
from .labels import Labels, RawBox, RawImage, Remarks
from .reading import KINDS, read_labels
from .splitting import few_shot, split_off

__all__ = [
    "KINDS", "Checked", "Labels", "RawBox", "RawImage", "Remarks", "check_labels", "few_shot",
    "read_labels", "split_off",
]  # fmt: skip
