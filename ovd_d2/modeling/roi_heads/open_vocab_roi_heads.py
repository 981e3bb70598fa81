"""ROI heads for Detectron2's unmodified ``GeneralizedRCNN`` with a vocabulary of text.

Letters: R regions over the batch, K classes.
"""

import torch
from detectron2.config import CfgNode, configurable
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

from ovd_d2.errors import OVDError

from .blocked_scores import Opinion
from .blocked_scoring import boxes_and_opinions
from .branch_pooler import BranchPooler
from .image_branch import SecondHead
from .joint_rows import BOX, JointRows
from .open_vocab_mixin import OpenVocabROIHeadsMixin


@ROI_HEADS_REGISTRY.register()
class OpenVocabROIHeads(OpenVocabROIHeadsMixin, StandardROIHeads):
    """Text classes for FPN and C5 detectors (Faster / Mask R-CNN)."""

    pools_for_branch = True
    # For torch.jit.script, as Detectron2 annotates its StandardROIHeads.
    mask_on: torch.jit.Final[bool]
    keypoint_on: torch.jit.Final[bool]

    @configurable
    def __init__(self, *, branch_pooler: BranchPooler | None = None, **kwargs):
        """
        Args:
            branch_pooler: of an image branch that looks at another map than the text branch; its
                channels follow those of the text branch in :meth:`pool`.
            kwargs: see :class:`OpenVocabROIHeadsMixin`.
        """
        super().__init__(**kwargs)
        self.branch_pooler = branch_pooler

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        ret = super().from_config(cfg, input_shape)
        if cfg.MODEL.IMAGE_BRANCH.IN_FEATURE:
            branch = ret.get("image_branch")
            if not isinstance(branch, SecondHead):
                raise OVDError(
                    "MODEL.IMAGE_BRANCH.IN_FEATURE is for a second head, not for "
                    f'MODEL.IMAGE_BRANCH.NAME "{cfg.MODEL.IMAGE_BRANCH.NAME}": leave it empty.'
                )
            ret["branch_pooler"] = BranchPooler.build(cfg, input_shape)
            branch.channels = ret["branch_pooler"].channels
        return ret

    def pool(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        """See :meth:`RegionTraining.pool`; with a ``branch_pooler`` what it pools comes behind."""
        # As in the base class, which torch.jit.script cannot call by super().
        pooled = self.box_pooler([features[name] for name in self.box_in_features], boxes)
        if self.branch_pooler is None:
            return pooled
        else:  # an else, since torch.jit.script leaves out only what is in a branch
            return torch.cat([pooled, self.branch_pooler(features, boxes)], dim=1)

    def region_features(self, pooled: Tensor) -> Tensor:
        """See :meth:`RegionTraining.region_features`."""
        if self.branch_pooler is None:
            return self.box_head(pooled)
        else:
            return self.box_head(pooled[:, : -self.branch_pooler.channels])


@ROI_HEADS_REGISTRY.register()
class OpenVocabCascadeROIHeads(OpenVocabROIHeadsMixin, CascadeROIHeads):
    """Text classes for Cascade R-CNN: one projection per stage, probabilities averaged.

    Region tasks without a head teach *every* stage (``loss_distill_l1_stage0``, ...): each has its
    own projection and the same say in the averaged score, so a stage that the teacher has not
    taught would veto novel classes. Their rows keep their boxes in all stages, since the teacher's
    embedding is that of the box; so they are pooled once, in stage 0.

    An image branch is one head, not one per stage. It looks at the boxes that the last stage
    looks at (in training at that stage's proposals, if it learns from them).
    """

    def region_features(self, pooled: Tensor) -> Tensor:
        """See :meth:`RegionTraining.region_features`."""
        return self.box_head[-1](pooled)

    def _detections(
        self, boxes: list[Tensor], scores: list[Tensor], image_sizes: list[tuple[int, int]]
    ) -> list[Instances]:
        return self.box_predictor[-1].detections(boxes, scores, image_sizes)[0]

    def box_losses(
        self, features: dict[str, Tensor], rows: JointRows, targets: list[Instances]
    ) -> tuple[dict[str, Tensor], Tensor]:
        storage, losses, boxes = get_event_storage(), {}, None
        image_sizes, scale = [p.image_size for p in rows.of[BOX]], 1.0 / self.num_cascade_stages
        pooled = rows.split(self.pool(features, rows.boxes))
        for k, (head, predictor) in enumerate(zip(self.box_head, self.box_predictor)):
            if k > 0:
                proposals = self._create_proposals_from_boxes(boxes, image_sizes)
                rows.of[BOX] = self._match_and_label_boxes(proposals, k, targets)
                pooled[BOX] = self.pool(features, [p.proposal_boxes for p in rows.of[BOX]])
            # As the parent: the gradients of the stages add up in the features.
            x = rows.together(lambda x, head=head: head(_ScaleGradient.apply(x, scale)), pooled)
            with storage.name_scope(f"stage{k}"):
                predictions, of_stage = self.stage_losses(predictor, x, rows)
            boxes = predictor.predict_boxes(predictions, rows.of[BOX])
            losses.update({f"{name}_stage{k}": loss for name, loss in of_stage.items()})
        losses.update(rows.task_losses(predictor, pooled, has_head=True))
        return losses, x[BOX]

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

    def _stages(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> tuple[Tensor, list[Tensor], list[list[Opinion]]]:
        """See :meth:`BlockedScoring._stages`."""
        image_sizes = [p.image_size for p in proposals]
        boxes, stages = None, []
        for k, (head, predictor) in enumerate(zip(self.box_head, self.box_predictor)):
            if k > 0:
                proposals = self._create_proposals_from_boxes(boxes, image_sizes)
            pooled = self.pool(features, [p.proposal_boxes for p in proposals])
            boxes, opinions = boxes_and_opinions(predictor, head(pooled), proposals)
            stages.append(opinions)
        return pooled, boxes, stages


@ROI_HEADS_REGISTRY.register()
class OpenVocabRes5ROIHeads(OpenVocabROIHeadsMixin, Res5ROIHeads):
    """Text classes for C4 detectors: the region feature is res5's spatial mean.

    The head of an image branch is a second res5.
    """

    mask_on: torch.jit.Final[bool]  # for torch.jit.script

    @classmethod
    def _second_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> tuple[nn.Module, int]:
        res5, width = cls._build_res5_block(cfg)
        return nn.Sequential(res5, nn.AdaptiveAvgPool2d(1)), width

    def pool(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        """See :meth:`RegionTraining.pool`."""
        return self.pooler([features[name] for name in self.in_features], boxes)

    def region_features(self, pooled: Tensor) -> Tensor:
        """See :meth:`RegionTraining.region_features`."""
        return self.res5(pooled)

    def vectors(self, x: Tensor) -> Tensor:
        """See :meth:`RegionTraining.vectors`."""
        return x.mean(dim=(2, 3))

    def mask_losses(
        self, features: dict[str, Tensor], proposals: list[Instances], x: Tensor
    ) -> dict[str, Tensor]:
        if not self.mask_on:
            return {}
        proposals, foreground = select_foreground_proposals(proposals, self.num_classes)
        return self.mask_head(x[torch.cat(foreground)], proposals)
