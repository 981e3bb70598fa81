"""From the outputs of a grounding head to detections (GLIP's public code, ATSS's post-processing).

Letters: N images, P prompts, Kp classes of prompt p, A anchors, L tokens, R candidates of an image.
"""

from collections.abc import Sequence

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ovd_d2.errors import OVDError

from .candidates import Candidates, clip_to_image, without_duplicates
from .grounding_outputs import HeadOutputs

AGGREGATIONS = ("mean", "max")


def class_scores(probabilities: Tensor, token_map: Tensor, aggregation: str = "mean") -> Tensor:
    """Score of a class: mean or maximum over the probabilities of its tokens.

    Args:
        probabilities: (A, L) float in [0, 1].
        token_map: (K, L) bool, the tokens of each class.
        aggregation: "mean" or "max".

    Returns:
        (A, K); 0 for a class without tokens.
    """
    if aggregation == "mean":
        weights = token_map.to(probabilities.dtype)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
        return probabilities @ weights.T
    classes, tokens = token_map.nonzero(as_tuple=True)
    scores = probabilities.new_zeros(len(probabilities), len(token_map))
    places = classes.expand(len(probabilities), -1)
    return scores.scatter_reduce(1, places, probabilities[:, tokens], "amax")


class GroundingInference:
    """Scores classes at anchors, keeps the best per level, decodes, suppresses duplicates.

    The score of a detection is ``sqrt(class score * centerness)``; the threshold applies to the
    class score alone.
    """

    share_exponents = None  # classes are scored one by one

    def __init__(
        self,
        *,
        box2box_transform: Box2BoxTransform,
        score_threshold: float = 0.05,
        candidates_per_level: int = 1000,
        nms_threshold: float = 0.6,
        max_detections: int = 100,
        aggregation: str = "mean",
    ) -> None:
        """
        Args:
            box2box_transform: code of the box deltas; GLIP: weights (10, 10, 5, 5).
            score_threshold: class scores must be above it, before centerness.
            candidates_per_level: of one prompt, over all its classes.
            nms_threshold: boxes of a class with a higher IoU are suppressed.
            max_detections: of an image; LVIS: 300.
            aggregation: of the tokens of a class, "mean" or "max".

        Raises:
            OVDError: unknown ``aggregation``.
        """
        if aggregation not in AGGREGATIONS:
            raise OVDError(f'aggregation is "{aggregation}"; use "mean" or "max".')
        self.box2box_transform = box2box_transform
        self.score_threshold = score_threshold
        self.candidates_per_level = candidates_per_level
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        self.aggregation = aggregation

    def threshold_for(self, score: float) -> float:
        """See :class:`~ovd_d2.modeling.detection_choice.DetectionChoice`; centerness is <= 1."""
        return score**2

    @torch.no_grad()
    def candidates(
        self,
        anchors: Sequence[Boxes],
        outputs: HeadOutputs,
        image_sizes: Sequence[tuple[int, int]],
        token_maps: Sequence[Tensor],
        class_numbers: Sequence[Tensor],
    ) -> list[Candidates]:
        """Scored boxes of all prompts, before suppression; lists of several calls may be joined.

        Args:
            anchors: per level.
            outputs: of all N x P pairs, or of image i with prompt i (the prompts' axis is 1).
            image_sizes: N (height, width) that boxes are clipped to; every box keeps a pixel.
            token_maps: per prompt (Kp, L) bool, the tokens of each class.
            class_numbers: per prompt (Kp,) int64, what its classes are called in the result.

        Raises:
            OVDError: the numbers of prompts, maps and class numbers differ.
        """
        number, prompts = outputs.token_logits.shape[:2]
        paired = prompts == 1 and len(token_maps) == number
        if not paired and len(token_maps) != prompts or len(class_numbers) != len(token_maps):
            raise OVDError(
                f"token_maps has {len(token_maps)} and class_numbers {len(class_numbers)} entries, "
                f"the outputs are of {prompts} prompts and {number} images: give one per prompt."
            )
        every = Boxes.cat(list(anchors)).tensor
        sizes = [len(level) for level in anchors]
        found = []
        for image in range(number):
            parts = [
                self._of_pair(outputs, image, prompt, sizes, token_maps[one], class_numbers[one])
                for prompt, one in ([(0, image)] if paired else enumerate(range(prompts)))
            ]
            places, deltas, scores, classes = (torch.cat(column) for column in zip(*parts))
            boxes = self.box2box_transform.apply_deltas(deltas, every[places])
            found.append(Candidates(clip_to_image(boxes, image_sizes[image]), scores, classes))
        return found

    def _of_pair(
        self,
        outputs: HeadOutputs,
        image: int,
        prompt: int,
        sizes: list[int],
        token_map: Tensor,
        numbers: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(R,) anchor, (R, 4) deltas, (R,) score, (R,) class number of the best of every level."""
        shared = min(prompt, outputs.centerness.shape[1] - 1)
        centerness = outputs.centerness[image, shared].sigmoid()
        probabilities = outputs.token_logits[image, prompt].sigmoid()
        of_classes = class_scores(probabilities, token_map, self.aggregation)
        rows, columns, best = [], [], []
        start = 0
        for scores in of_classes.split(sizes):
            row, column = (scores > self.score_threshold).nonzero(as_tuple=True)
            score = scores[row, column] * centerness[row + start]
            if len(score) > self.candidates_per_level:
                score, kept = score.topk(self.candidates_per_level, sorted=False)
                row, column = row[kept], column[kept]
            rows.append(row + start)
            columns.append(column)
            best.append(score)
            start += len(scores)
        row = torch.cat(rows)
        deltas = outputs.box_deltas[image, shared, row]
        return row, deltas, torch.cat(best).sqrt(), numbers[torch.cat(columns)]

    @torch.no_grad()
    def select(
        self, candidates: Sequence[Candidates], image_sizes: Sequence[tuple[int, int]]
    ) -> list[Instances]:
        """The best detections of each image, highest score first, no two of a class at one place.

        Returns:
            Per image ``pred_boxes``, ``scores``, ``pred_classes``, in pixels of the resized image.
        """
        return without_duplicates(candidates, image_sizes, self.nms_threshold, self.max_detections)
