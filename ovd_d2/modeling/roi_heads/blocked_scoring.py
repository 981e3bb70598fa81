"""How the ROI heads score proposals for very many classes: by :class:`BlockedScores`.

Letters: R regions over the batch, Ri of image i, K classes, D embedding width.
"""

from collections.abc import Sequence

import torch
from detectron2.structures import ImageList, Instances
from torch import Tensor

from ovd_d2.modeling.classifiers import EmbeddingClassifier

from .blocked_scores import MOST_DENSE_CLASSES, BlockedScores, Opinion
from .open_vocab_box_predictor import OpenVocabBoxPredictor
from .score_fusion import ClassWeights, ScoreRule


class BlockedScoring:
    """The part of :class:`OpenVocabROIHeadsMixin` that is used at test time with more than
    ``MOST_DENSE_CLASSES``. It finds what the dense way finds, without a table of R x K."""

    @property
    def scores_in_blocks(self) -> bool:
        """Whether there are too many classes for tables of scores."""
        return self.num_classes > MOST_DENSE_CLASSES

    @torch.no_grad()
    def boxes_and_blocked_scores(
        self, images: ImageList, features: dict[str, Tensor], proposals: list[Instances]
    ) -> tuple[list[Tensor], list[BlockedScores]]:
        """As :meth:`OpenVocabROIHeadsMixin.boxes_and_scores`, the scores (Ri, K) not computed yet
        and without a column of the background."""
        pooled, boxes, stages = self._stages(features, proposals)
        texts = [list(of_image) for of_image in zip(*stages)]  # per image, one per stage
        objectness = [p.objectness_logits.sigmoid() if self.score_rule else None for p in proposals]
        seconds: list[Opinion | None] = [None] * len(boxes)
        if self.image_branch is not None:
            kept = [self.image_branch.candidates(b, o) for b, o in zip(boxes, objectness)]
            for i, rows in enumerate(kept):
                if rows is not None:
                    boxes[i], objectness[i] = boxes[i][rows], objectness[i][rows]
                    texts[i] = [opinion.of_rows(rows) for opinion in texts[i]]
            seconds = self.image_branch.opinions(pooled, boxes, images)
        weights = None
        if self.score_rule is not None and self.score_rule.combine == "ensemble":
            every = self.score_rule.class_weights(self.is_novel)
            weights = ClassWeights(*(part.to(boxes[0].device) for part in every))
        return boxes, [
            _fused(*opinions, self.score_rule, weights)
            for opinions in zip(texts, seconds, objectness)
        ]

    def _stages(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> tuple[Tensor, list[Tensor], list[list[Opinion]]]:
        """What the (last) stage looked at, (R, C, P, P), the boxes that it predicts, per image, and
        per stage the text branch's opinion on each image."""
        pooled = self.pool(features, [p.proposal_boxes for p in proposals])
        x = self.vectors(self.region_features(pooled))
        boxes, opinions = boxes_and_opinions(self.box_predictor, x, proposals)
        return pooled, boxes, [opinions]


def boxes_and_opinions(
    predictor: OpenVocabBoxPredictor, x: Tensor, proposals: Sequence[Instances]
) -> tuple[list[Tensor], list[Opinion]]:
    """Per image the boxes (Ri, 4) and the opinion of a box predictor.

    Args:
        predictor: whose.
        x: (R, ...) region features.
        proposals: per image.
    """
    x = x.flatten(1)
    boxes = predictor.predict_boxes((x, predictor.bbox_pred(x)), proposals)
    opinions = opinions_of(
        predictor.cls_score,
        x,
        [len(p) for p in proposals],
        with_background=predictor.train_classifier,
        sigmoid=predictor.train_classifier and predictor.use_sigmoid_ce,
    )
    return list(boxes), opinions


def opinions_of(
    classifier: EmbeddingClassifier,
    x: Tensor,
    sizes: Sequence[int],
    *,
    with_background: bool,
    sigmoid: bool = False,
) -> list[Opinion]:
    """Per image what a classifier says of (R, F) region features.

    Args:
        classifier: whose.
        x: of all images.
        sizes: Ri.
        with_background: the background takes part in the softmax.
        sigmoid: no softmax.
    """
    regions = classifier.embed(x)
    background = classifier.background_logits(regions) if with_background else None
    parts = zip(
        regions.split(list(sizes)),
        [None] * len(sizes) if background is None else background.split(list(sizes)),
    )
    return [
        Opinion(
            of_image,
            classifier.class_embeddings,
            classifier.logit_scale,
            classifier.bias,
            background=of_background,
            sigmoid=sigmoid,
        )
        for of_image, of_background in parts
    ]


def _fused(
    texts: list[Opinion],
    image: Opinion | None,
    objectness: Tensor | None,
    rule: ScoreRule | None,
    weights: ClassWeights | None,
) -> BlockedScores:
    """The scores of an image: those of the text branch, the mean over its stages, or what ``rule``
    makes of them, the image branch's ``image`` and the proposals' ``objectness``."""
    if rule is not None and rule.combine == "objectness" and image is not None:
        texts = []  # they do not count
    stages = len(texts)

    def combine(found: list[Tensor], rows: Tensor | slice, classes: Tensor | slice) -> Tensor:
        text = sum(found[:stages]) * (1.0 / stages) if stages > 1 else found[0]
        if rule is None:
            return text
        second = None if image is None else found[-1]
        some = None if weights is None else ClassWeights(*(part[classes] for part in weights))
        return rule.fused(text, second, objectness[rows], some)

    return BlockedScores([*texts, *([] if image is None else [image])], combine)
