"""How detectors choose among their scored boxes, as something that callers can look at and change.

Letter: K classes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor, nn

from ovd_d2.modeling.open_vocabulary import part_with


class DetectionChoice(Protocol):
    """What a detector, or its ROI heads, has as ``detection_choice``. It is read whenever the
    detector detects.

    Attributes:
        score_threshold: boxes are considered from about this on; see :meth:`threshold_for`.
        nms_threshold: of two boxes of a class with a higher IoU the lower-scored goes; 1: none.
        max_detections: of an image; < 0: all.
        share_exponents: (K,) float, where classes share a probability of 1 (softmax): what a
            class's share is raised to in its score. So scores s that a box has for several words
            of one class become that class's as (sum of s ** (1 / e)) ** e. None where words are
            scored one by one (sigmoid): the largest is the class's.
        found_classes: only of choices with ``share_exponents``: boxes are found of the first so
            many classes; the others take their share of the probability and nothing else. None: of
            all.
    """

    score_threshold: float
    nms_threshold: float
    max_detections: int
    share_exponents: Tensor | None
    found_classes: int | None

    def threshold_for(self, score: float) -> float:
        """The largest ``score_threshold`` that no detection of at least ``score`` falls below."""


def detection_choice(model: nn.Module) -> DetectionChoice | None:
    """That of ``model``; None of models that choose no boxes (label maps), or do not say how."""
    owner = part_with(model, "detection_choice")
    return None if owner is None else owner.detection_choice


@contextmanager
def changed_choice(
    choice: DetectionChoice,
    score_threshold: float,
    max_detections: int,
    found_classes: int | None = None,
) -> Iterator[None]:
    """Inside, the detector chooses by these; afterwards as before. ``found_classes`` None: as it is
    now."""
    wanted = {"score_threshold": score_threshold, "max_detections": max_detections}
    if found_classes is not None:
        wanted["found_classes"] = found_classes
    before = {name: getattr(choice, name) for name in wanted}
    try:
        for name, value in wanted.items():
            setattr(choice, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(choice, name, value)
