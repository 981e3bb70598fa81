"""How detectors choose among their scored boxes, as something that callers can look at and change.

Letter: K classes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from torch import nn

from ovd_d2.modeling.open_vocabulary import part_with


class DetectionChoice(Protocol):
    """What a detector, or its ROI heads, has as ``detection_choice``. It is read whenever the
    detector detects.

    Attributes:
        score_threshold: boxes are considered from about this on; see :meth:`threshold_for`.
        nms_threshold: of two boxes of a class with a higher IoU the lower-scored goes; 1: none.
        max_detections: of an image; < 0: all.
        word_norm: how scores that a box has for several words of one class become that class's:
            their p-norm. Infinite, the largest, where words are scored one by one (sigmoid); 1,
            the sum, where the words share a probability of 1 (softmax); 2 for the square root of
            such a share times something else.
    """

    score_threshold: float
    nms_threshold: float
    max_detections: int
    word_norm: float

    def threshold_for(self, score: float) -> float:
        """The largest ``score_threshold`` that no detection of at least ``score`` falls below."""


def detection_choice(model: nn.Module) -> DetectionChoice | None:
    """That of ``model``; None of models that choose no boxes (label maps), or do not say how."""
    owner = part_with(model, "detection_choice")
    return None if owner is None else owner.detection_choice


@contextmanager
def changed_choice(
    choice: DetectionChoice, score_threshold: float, max_detections: int
) -> Iterator[None]:
    """Inside, the detector chooses by these; afterwards as before."""
    before = choice.score_threshold, choice.max_detections
    choice.score_threshold, choice.max_detections = score_threshold, max_detections
    try:
        yield
    finally:
        choice.score_threshold, choice.max_detections = before
