"""Class-agnostic region proposals of a detector of transformers.

Letters: Ri regions of image i.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torchvision.ops import clip_boxes_to_image, nms

from ovd_d2.proposals.huggingface_detector import HuggingFaceDetector
from ovd_d2.proposals.proposer import best
from ovd_d2.pseudo_labelling import Found

NMS_IOU = 0.7  # as an RPN's: some of these models give a box once for each of its classes


class HuggingFaceProposals:
    """A :class:`~ovd_d2.proposals.proposer.BoxProposer`: a detector's boxes, classes ignored,
    after class-agnostic NMS at IoU 0.7.

    Args:
        detector: proposes.
        topk: boxes to keep per image.
    """

    has_scores = True

    def __init__(self, detector: HuggingFaceDetector, topk: int) -> None:
        self._detector, self._topk = detector, topk
        self.name = f"{detector.name}, top {topk}"

    def __call__(
        self, record: dict[str, Any], image: Tensor, classes: Sequence[int] | None = None
    ) -> list[Found]:
        """Boxes of one image, as :class:`~ovd_d2.proposals.proposer.BoxProposer` defines them."""
        boxes, scores = self._detector.objects(image)
        boxes = clip_boxes_to_image(boxes, image.shape[1:])
        kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1) & scores.isfinite()
        boxes, scores = boxes[kept], scores[kept]
        kept = nms(boxes, scores, NMS_IOU)
        return [best(boxes[kept], scores[kept], self._topk)]
