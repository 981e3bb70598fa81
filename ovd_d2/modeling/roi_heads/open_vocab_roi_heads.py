"""ROI heads for Detectron2's unmodified ``GeneralizedRCNN`` with a vocabulary of text.

Letters: R regions over the batch, M of them with a teacher embedding, K classes.
"""

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    CascadeROIHeads,
    Res5ROIHeads,
    StandardROIHeads,
    select_foreground_proposals,
)
from detectron2.modeling.roi_heads.cascade_rcnn import _ScaleGradient
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from .joint_rows import JointRows
from .open_vocab_mixin import OpenVocabROIHeadsMixin


@ROI_HEADS_REGISTRY.register()
class OpenVocabROIHeads(OpenVocabROIHeadsMixin, StandardROIHeads):
    """Text classes for FPN and C5 detectors (Faster / Mask R-CNN)."""

    # For torch.jit.script, as Detectron2 annotates its StandardROIHeads.
    mask_on: torch.jit.Final[bool]
    keypoint_on: torch.jit.Final[bool]

    def _text_features(self, pooled: Tensor) -> Tensor:
        return self.box_head(pooled).flatten(1)

    def _box_losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances],
        regions: list[Instances],
        labelled: list[Instances],
    ) -> dict[str, Tensor]:
        rows = JointRows(proposals, regions, labelled)
        pooled = self.pool(features, rows.boxes)
        if self.image_branch is None:
            x, x_regions, x_labelled = rows.split(self.box_head(pooled))
        else:
            pooled, pooled_regions, pooled_labelled = rows.split(pooled)
            x = self.box_head(torch.cat([pooled, pooled_labelled]))
            x, x_labelled = x[: len(pooled)], x[len(pooled) :]
            x_regions = x[:0]
        predictions = self.box_predictor(x)
        losses = self.box_predictor.losses(predictions, proposals)
        losses.update(
            self._extra_losses(self.box_predictor, x_regions, regions, x_labelled, labelled)
        )
        if self.image_branch is not None:
            losses.update(self.image_branch.losses(pooled, proposals, pooled_regions, regions))
        if self.train_on_pred_boxes:
            with torch.no_grad():
                found = self.box_predictor.predict_boxes_for_gt_classes(predictions, proposals)
            for one, boxes in zip(proposals, found):
                one.proposal_boxes = Boxes(boxes)
        return losses


@ROI_HEADS_REGISTRY.register()
class OpenVocabCascadeROIHeads(OpenVocabROIHeadsMixin, CascadeROIHeads):
    """Text classes for Cascade R-CNN: one projection per stage, probabilities averaged.

    Without an image branch *every* stage distils (``loss_distill_l1_stage0``, ...): each has its
    own projection and the same say in the averaged score, so a stage that the teacher has not
    taught would veto novel classes. The regions keep their boxes in all stages, since the
    teacher's embedding is that of the box; so they are pooled once, in stage 0. The same goes for
    image labels and their pseudo boxes (``loss_image_label_stage0``, ...).

    An image branch is one head, not one per stage. It looks at the boxes that the last stage
    looks at (in training, as the labelled control, at its sampled proposals; a distilled one
    at the teacher's boxes).
    """

    def _text_features(self, pooled: Tensor) -> Tensor:
        return self.box_head[-1](pooled).flatten(1)

    def _detections(
        self, boxes: list[Tensor], scores: list[Tensor], image_sizes: list[tuple[int, int]]
    ) -> list[Instances]:
        return self.box_predictor[-1].detections(boxes, scores, image_sizes)[0]

    def _box_losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances],
        regions: list[Instances],
        labelled: list[Instances],
    ) -> dict[str, Tensor]:
        storage, losses, boxes = get_event_storage(), {}, None
        image_sizes = [p.image_size for p in proposals]
        rows = JointRows(proposals, regions, labelled)
        pooled, pooled_regions, pooled_labelled = rows.split(self.pool(features, rows.boxes))
        text_regions = pooled_regions[:0] if self.distiller is None else pooled_regions
        for k, (head, predictor) in enumerate(zip(self.box_head, self.box_predictor)):
            if k > 0:
                proposals = self._create_proposals_from_boxes(boxes, image_sizes)
                proposals = self._match_and_label_boxes(proposals, k, targets)
                pooled = self.pool(features, [p.proposal_boxes for p in proposals])
            x = torch.cat([pooled, text_regions, pooled_labelled])
            # As the parent: the gradients of the stages add up in the features.
            x = head(_ScaleGradient.apply(x, 1.0 / self.num_cascade_stages))
            x, *extra = x.split([len(pooled), len(text_regions), len(pooled_labelled)])
            predictions = predictor(x)
            boxes = predictor.predict_boxes(predictions, proposals)
            with storage.name_scope(f"stage{k}"):
                of_stage = predictor.losses(predictions, proposals)
                of_stage.update(
                    self._extra_losses(predictor, extra[0], regions, extra[1], labelled)
                )
            losses.update({f"{name}_stage{k}": loss for name, loss in of_stage.items()})
        if self.image_branch is not None:
            losses.update(self.image_branch.losses(pooled, proposals, pooled_regions, regions))
        return losses

    def boxes_and_scores(
        self, images: ImageList, features: dict[str, Tensor], proposals: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """See :meth:`OpenVocabROIHeadsMixin.boxes_and_scores`."""
        of_rpn = proposals
        image_sizes = [p.image_size for p in proposals]
        boxes, stages = None, []
        for k, (head, predictor) in enumerate(zip(self.box_head, self.box_predictor)):
            if k > 0:
                proposals = self._create_proposals_from_boxes(boxes, image_sizes)
            pooled = self.pool(features, [p.proposal_boxes for p in proposals])
            predictions = predictor(head(pooled))
            boxes = predictor.predict_boxes(predictions, proposals)
            stages.append(predictor.predict_probs(predictions, proposals))
        mean = [sum(probabilities) * (1.0 / len(stages)) for probabilities in zip(*stages)]
        return self._scored(images, pooled, boxes, mean, of_rpn)


class SpatialMean(nn.Module):
    """(R, C, H, W) -> (R, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


@ROI_HEADS_REGISTRY.register()
class OpenVocabRes5ROIHeads(OpenVocabROIHeadsMixin, Res5ROIHeads):
    """Text classes for C4 detectors: the region feature is res5's spatial mean.

    The head of an image branch is a second res5.
    """

    mask_on: torch.jit.Final[bool]  # for torch.jit.script

    @classmethod
    def _second_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> tuple[nn.Module, int]:
        res5, width = cls._build_res5_block(cfg)
        return nn.Sequential(res5, SpatialMean()), width

    def pool(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        """See :meth:`OpenVocabROIHeadsMixin.pool`."""
        return self.pooler([features[name] for name in self.in_features], boxes)

    def _text_features(self, pooled: Tensor) -> Tensor:
        return self.res5(pooled).mean(dim=(2, 3))

    def _train(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances],
        regions: list[Instances],
        labelled: list[Instances],
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        proposals = self.label_and_sample_proposals(proposals, targets)
        rows = JointRows(proposals, regions, labelled)
        pooled = self.pool(features, rows.boxes)
        if self.image_branch is None:
            x, x_regions, x_labelled = rows.split(self.res5(pooled))
        else:
            pooled, pooled_regions, pooled_labelled = rows.split(pooled)
            x = self.res5(torch.cat([pooled, pooled_labelled]))
            x, x_labelled = x[: len(pooled)], x[len(pooled) :]
            x_regions = x[:0]
        losses = self.box_predictor.losses(self.box_predictor(x.mean(dim=(2, 3))), proposals)
        means = [extra.mean(dim=(2, 3)) for extra in (x_regions, x_labelled)]
        losses.update(self._extra_losses(self.box_predictor, means[0], regions, means[1], labelled))
        if self.image_branch is not None:
            losses.update(self.image_branch.losses(pooled, proposals, pooled_regions, regions))
        if self.mask_on:  # the mask head works on the box features
            proposals, foreground = select_foreground_proposals(proposals, self.num_classes)
            losses.update(self.mask_head(x[torch.cat(foreground)], proposals))
        return [], losses
