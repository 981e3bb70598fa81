"""Detectron2's losses and those of region tasks, in one pass.

Letters: R regions over the batch, F width of a region's features, C x P x P a pooled region.
"""

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ovd_d2.structures import Supervision, is_box_supervised, rows_with

from .joint_rows import BOX, JointRows
from .open_vocab_box_predictor import OpenVocabBoxPredictor
from .region_task import RegionTask


class RegionTraining:
    """The training half of :class:`OpenVocabROIHeadsMixin`: a list of :class:`RegionTask` beside
    Detectron2's losses.

    The rows of all tasks and the sampled proposals share one pooling pass and, but for tasks with
    a head of their own, one pass through the box head. :class:`RegionDistiller` (ViLD, RKD) and
    :class:`ImageLabelSupervision` (RKD) teach the text branch; an image branch that learns
    (ViLD-ensemble) is one more task. Each kind of heads has :meth:`region_features` of its own,
    and :meth:`pool`, :meth:`vectors`, :meth:`box_losses` and :meth:`mask_losses` where these here
    do not fit.
    """

    train_on_pred_boxes = False  # of StandardROIHeads; the others have no such setting

    @property
    def needs_teacher_regions(self) -> bool:
        """Whether training makes use of target rows of TEACHER_REGION."""
        return any(task.kind == Supervision.TEACHER_REGION for task in self.tasks)

    @property
    def tasks(self) -> list[RegionTask]:
        """All that learn beside Detectron2's losses: the image branch too, if it does."""
        branch = [self.image_branch] if isinstance(self.image_branch, RegionTask) else []
        return [task for task in (*self.region_tasks, *branch) if task.learns]

    def _train(
        self, features: dict[str, Tensor], proposals: list[Instances], targets: list[Instances]
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Sampled proposals and losses; kinds of rows in an order that no list of tasks changes."""
        kinds = sorted({task.kind for task in self.tasks} - {BOX}, reverse=True)
        further = {kind: [rows_with(t, kind) for t in targets] for kind in kinds}
        self.target_checks.before_training(targets, self.vocabulary, further)
        proposals = [p if is_box_supervised(t) else p[:0] for p, t in zip(proposals, targets)]
        numbers = self.target_checks.class_numbers
        targets = numbers.of_vocabulary([rows_with(t, BOX) for t in targets], self.vocabulary)
        labels = Supervision.IMAGE_LABEL
        if labels in further:  # the regions of a teacher have no class
            further[labels] = numbers.of_vocabulary(further[labels], self.vocabulary)
        proposals = self.label_and_sample_proposals(proposals, targets)
        rows = JointRows(self.tasks, proposals, further)
        losses, x = self.box_losses(features, rows, targets)
        losses.update(self.mask_losses(features, proposals, x))
        return proposals, losses

    def box_losses(
        self, features: dict[str, Tensor], rows: JointRows, targets: list[Instances]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Losses of box predictors and tasks, and :meth:`region_features` of the proposals;
        ``targets`` are the BOX rows."""
        pooled, predictor = self.pool(features, rows.boxes), self.box_predictor
        if any(task.has_head for task in self.tasks):
            pooled = rows.split(pooled)
            x = rows.together(self.region_features, pooled)
        else:
            x, pooled = rows.split(self.region_features(pooled)), {}
        predictions, losses = self.stage_losses(predictor, x, rows)
        losses.update(rows.task_losses(predictor, pooled, has_head=True))
        if self.train_on_pred_boxes:
            proposals = rows.of[BOX]
            with torch.no_grad():
                found = predictor.predict_boxes_for_gt_classes(predictions, proposals)
            for one, boxes in zip(proposals, found):
                one.proposal_boxes = Boxes(boxes)
        return losses, x[BOX]

    def stage_losses(
        self, predictor: OpenVocabBoxPredictor, x: dict[Supervision, Tensor], rows: JointRows
    ) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
        """Predictions for the proposals, and losses of one predictor and of the tasks that teach
        it, from :meth:`region_features` by kind."""
        x = {kind: self.vectors(of_kind) for kind, of_kind in x.items()}
        predictions = predictor(x[BOX])
        losses = predictor.losses(predictions, rows.of[BOX])
        return predictions, {**losses, **rows.task_losses(predictor, x, has_head=False)}

    def mask_losses(
        self, features: dict[str, Tensor], proposals: list[Instances], x: Tensor
    ) -> dict[str, Tensor]:
        """Losses of masks and keypoints; ``x`` are the proposals' :meth:`region_features`."""
        losses = self._forward_mask(features, proposals)
        losses.update(self._forward_keypoint(features, proposals))
        return losses

    def region_features(self, pooled: Tensor) -> Tensor:
        """(R, C, P, P) pooled regions -> (R, ...), what the (last) box head makes of them."""
        raise NotImplementedError

    def vectors(self, x: Tensor) -> Tensor:
        """(R, ...) :meth:`region_features` -> (R, F) for box predictor and tasks."""
        return x.flatten(1)

    def pool(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        """(R, C, P, P), what the box head (of the first stage) looks at.

        Args:
            features: of the backbone.
            boxes: per image, absolute, in the frame of the model's input.
        """
        return self.box_pooler([features[name] for name in self.box_in_features], boxes)
