"""Boxes that a detector gives for several texts about one image, merged to one list.

Letters: P texts, Q boxes of a text, R boxes of all texts.

Sources: Maaz et al. 2021 (MAVL), section 4.1, and its public code: all boxes of all texts, then
NMS; Rasheed et al. 2022 (RKD), section 3.2, and its public code: the best 50 of each text, NMS,
then the best 5.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_convert

from ovd_d2.layers.pixel_nms import pixel_nms


class Merged(NamedTuple):
    """Boxes of one image, best first: (R, 4) x0 y0 x1 y1 in pixels, (R,) scores in 0..1, and (R,)
    int64, the group of the text that each came from."""

    boxes: Tensor
    scores: Tensor
    groups: Tensor


def boxes_in_pixels(boxes: Tensor, size: tuple[int, int], whole: bool = False) -> Tensor:
    """Relative boxes in an image, which may reach beyond it.

    Args:
        boxes: (..., 4) cx cy w h, relative.
        size: (height, width).
        whole: cut to whole numbers, towards zero.

    Returns:
        (..., 4) x0 y0 x1 y1 float.
    """
    height, width = size
    corners = box_convert(boxes, "cxcywh", "xyxy") * boxes.new_tensor([width, height] * 2)
    return corners.trunc() if whole else corners


class QueryMerging:
    """Keeps the best boxes of each text, pools those of one group, suppresses duplicates.

    It is a :class:`~ovd_d2.modeling.detection_choice.DetectionChoice`.
    """

    share_exponents = None  # texts are scored one by one

    def __init__(
        self,
        *,
        score_threshold: float = 0.0,
        boxes_per_query: int = 0,
        nms_threshold: float = 0.5,
        max_detections: int = -1,
        whole_pixels: bool = False,
    ) -> None:
        """
        Args:
            score_threshold: scores must be above it.
            boxes_per_query: best boxes of a text that go on; 0: all.
            nms_threshold: of two boxes of a group with a higher IoU the lower-scored goes, widths
                counting pixels (x1 - x0 + 1); 1: none.
            max_detections: of an image; -1: all.
            whole_pixels: boxes are cut to whole pixels before they are compared.
        """
        self.score_threshold = score_threshold
        self.boxes_per_query = boxes_per_query
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        self.whole_pixels = whole_pixels

    def threshold_for(self, score: float) -> float:
        """See :class:`~ovd_d2.modeling.detection_choice.DetectionChoice`."""
        return score

    def best_of_query(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The boxes of one text that go on: (Q, 4) and (Q,), best first; ties in their order."""
        scores, order = scores.sort(descending=True, stable=True)
        good = scores > self.score_threshold
        scores, order = scores[good], order[good]
        if self.boxes_per_query:
            scores, order = scores[: self.boxes_per_query], order[: self.boxes_per_query]
        return boxes[order], scores

    @torch.no_grad()
    def __call__(
        self,
        boxes: Tensor,
        scores: Tensor,
        size: tuple[int, int],
        groups: Sequence[int] | None = None,
    ) -> Merged:
        """Merges the boxes of one image.

        Args:
            boxes: (P, Q, 4) cx cy w h, relative to the image.
            scores: (P, Q) in 0..1.
            size: (height, width) of the frame that boxes are wanted in.
            groups: a number for each text; boxes of one group suppress each other; None: all are
                of group 0.
        """
        numbers = [0] * len(boxes) if groups is None else list(groups)
        corners = boxes_in_pixels(boxes.float(), size, self.whole_pixels)
        chosen = [self.best_of_query(*one) for one in zip(corners, scores.float())]
        if not chosen:
            return Merged(
                corners.reshape(0, 4), scores.new_zeros(0).float(),
                torch.zeros(0, dtype=torch.int64, device=scores.device),
            )  # fmt: skip
        pooled = torch.cat([b for b, _ in chosen])
        rated = torch.cat([s for _, s in chosen])
        counts = torch.tensor([len(s) for _, s in chosen], device=scores.device)
        of_group = torch.tensor(numbers, device=scores.device).repeat_interleave(counts)
        if self.nms_threshold < 1:
            kept = pixel_nms(pooled, rated, self.nms_threshold, of_group)
        else:
            kept = rated.argsort(descending=True, stable=True)
        kept = kept if self.max_detections < 0 else kept[: self.max_detections]
        return Merged(pooled[kept], rated[kept], of_group[kept])
