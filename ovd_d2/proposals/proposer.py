"""The box proposer protocol.

Letters: H, W height and width of an image; Ri boxes of image i, or of one query on it.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from ovd_d2.pseudo_labelling import Found


class BoxProposer(Protocol):
    """Proposes boxes, image by image: annotations, files, our detectors, those of transformers.

    Attributes:
        name: for the facts of a region store or label file; names files and weights by digests.
        has_scores: whether the scores mean anything.

    One that asks in words has its ``queries``; one whose list of objects has no duplicates has
    ``is_merged``, True.
    """

    name: str
    has_scores: bool

    def __call__(
        self, record: dict[str, Any], image: Tensor, classes: Sequence[int] | None = None
    ) -> list[Found]:
        """Boxes of one image.

        Args:
            record: of the image, in Detectron2's dataset format.
            image: (3, H, W) uint8, RGB, turned as its EXIF orientation says.
            classes: which of the names it was built with are wanted; None: whatever is there.

        Returns:
            For each of ``classes``, or else for each way in which it asks for objects (most have
            one): (Ri, 4) float32 absolute xyxy in pixels of ``image`` and scores (Ri,) float32,
            higher is better, best first.
        """
        ...


def best(boxes: Tensor, scores: Tensor, topk: int) -> Found:
    """The ``topk`` rows of highest score, best first; ties in their order."""
    order = scores.argsort(descending=True, stable=True)[:topk]
    return boxes[order], scores[order]
