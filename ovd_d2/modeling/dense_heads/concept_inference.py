"""From regions and concepts to detections, for vocabularies of any size.

Letters: N images, A anchors, K classes, D embedding width, R candidates of an image.
"""

import itertools
from collections.abc import Sequence

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from torch import Tensor

from .candidates import Candidates, clip_to_image, without_duplicates
from .concept_head import RegionOutputs


class ConceptInference:
    """Scores classes at anchors, keeps the best per level, decodes, suppresses duplicates.

    The score of a detection is ``sqrt(probability * centerness)``; the threshold applies to the
    probability alone. Classes are scored ``classes_at_once``; what cannot be among the best of its
    level any more is dropped as a logit, so neither memory nor time spent behind the product of
    regions and classes grows with A x K.
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
        classes_at_once: int = 1024,
    ) -> None:
        """
        Args:
            box2box_transform: code of the box deltas; ATSS: weights (10, 10, 5, 5).
            score_threshold: probabilities must be above it, before centerness.
            candidates_per_level: best pairs of an anchor and a class that go on to NMS.
            nms_threshold: boxes of a class with a higher IoU are suppressed.
            max_detections: of an image; LVIS: 300.
            classes_at_once: whose A logits are held at a time.
        """
        self.box2box_transform = box2box_transform
        self.score_threshold = score_threshold
        self.candidates_per_level = candidates_per_level
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        self.classes_at_once = classes_at_once

    def threshold_for(self, score: float) -> float:
        """See :class:`~ovd_d2.modeling.detection_choice.DetectionChoice`; centerness is <= 1."""
        return score**2

    @torch.no_grad()
    def __call__(
        self,
        anchors: Sequence[Boxes],
        outputs: RegionOutputs,
        concepts: Tensor,
        bias: Tensor,
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Instances]:
        """
        Args:
            anchors: per level.
            outputs: of N images.
            concepts: (K, D) of norm 1.
            bias: scalar, of the logits.
            image_sizes: N (height, width) that boxes are clipped to; every box keeps a pixel.

        Returns:
            Per image ``pred_boxes``, ``scores``, ``pred_classes``, best first, in pixels of the
            resized image.
        """
        every = Boxes.cat(list(anchors)).tensor
        sizes = [len(level) for level in anchors]
        found = []
        for regions, deltas, centerness, size in zip(
            outputs.regions, outputs.box_deltas, outputs.centerness, image_sizes
        ):
            rows, classes, scores = self._best_pairs(
                regions, centerness.sigmoid(), concepts, bias, sizes
            )
            boxes = self.box2box_transform.apply_deltas(deltas[rows], every[rows])
            found.append(Candidates(clip_to_image(boxes, size), scores.sqrt(), classes))
        return without_duplicates(found, image_sizes, self.nms_threshold, self.max_detections)

    def _best_pairs(
        self, regions: Tensor, centerness: Tensor, concepts: Tensor, bias: Tensor, sizes: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(R,) anchor, class and probability x centerness of the best pairs of every level.

        A pair is better than the worst that its level keeps so far, of product b, only if its
        probability is above b / centerness: a bound per anchor, compared as a logit.
        """
        starts = [0, *itertools.accumulate(sizes)]
        bounds = regions.new_zeros(len(sizes))
        lengths = torch.tensor(sizes, device=regions.device)
        kept = [
            (regions.new_zeros(0, dtype=torch.int64),) * 2 + (regions.new_zeros(0),) for _ in sizes
        ]
        for first in range(0, len(concepts), self.classes_at_once):
            some = concepts[first : first + self.classes_at_once]
            logits = torch.addmm(bias, regions, some.T)  # (A, classes)
            least = bounds.repeat_interleave(lengths) / centerness.clamp(min=1e-12)
            least = torch.logit(least.clamp(min=self.score_threshold, max=1))
            rows, columns = (logits > least[:, None]).nonzero(as_tuple=True)
            scores = logits[rows, columns].sigmoid() * centerness[rows]
            ends = torch.searchsorted(rows, torch.tensor(starts, device=rows.device)).tolist()
            for level, (begin, end) in enumerate(itertools.pairwise(ends)):
                new = rows[begin:end], columns[begin:end] + first, scores[begin:end]
                kept[level] = self._best([torch.cat(pair) for pair in zip(kept[level], new)])
                if len(kept[level][2]) == self.candidates_per_level:
                    bounds[level] = kept[level][2].min()
        rows, classes, scores = (torch.cat(column) for column in zip(*kept))
        return rows, classes, scores

    def _best(self, pairs: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        rows, classes, scores = pairs
        if len(scores) > self.candidates_per_level:
            scores, places = scores.topk(self.candidates_per_level, sorted=False)
            rows, classes = rows[places], classes[places]
        return rows, classes, scores
