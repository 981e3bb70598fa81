"""An RPN for batches in which not every target row is a box."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.proposal_generator.build import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from ovd_d2.errors import OVDError
from ovd_d2.structures import Supervision, is_box_supervised, rows_with


@PROPOSAL_GENERATOR_REGISTRY.register()
class MixedSupervisionRPN(RPN):
    """Detectron2's RPN, trained on BOX rows alone.

    Anchors of images that have image-level labels only are all ignored: such an image says nothing
    about where no object is. It still counts in the losses' normaliser (anchors per image x
    images), so a weak image dilutes the RPN losses of its batch instead of amplifying the others.

    Where its losses could move no parameter (``MODEL.TUNE``), it only proposes: there are none.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        if cfg.MODEL.RPN.NORM and cfg.MODEL.RPN.HEAD_NAME == "StandardRPNHead":
            raise OVDError(
                f"MODEL.RPN.NORM is {cfg.MODEL.RPN.NORM!r}, but Detectron2's StandardRPNHead has "
                "no norm: set MODEL.RPN.HEAD_NAME RPNHeadWithNorm."
            )
        return super().from_config(cfg, input_shape)

    _only_proposes = False

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """As in :class:`RPN`; in training without losses where nothing would learn from them."""
        learns = (*self.parameters(), *(features[name] for name in self.in_features))
        self._only_proposes = not any(one.requires_grad for one in learns)
        return super().forward(images, features, gt_instances)

    def losses(self, *args: Any) -> dict[str, Tensor]:
        return {} if self._only_proposes else super().losses(*args)

    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As in :class:`RPN`; ``gt_instances`` may carry the field ``supervision`` (Ri,)."""
        if self._only_proposes:
            return [], []
        boxed = [rows_with(targets, Supervision.BOX) for targets in gt_instances]
        labels, boxes = super().label_and_sample_anchors(anchors, boxed)
        for label, targets in zip(labels, gt_instances):
            if not is_box_supervised(targets):
                label.fill_(-1)
        return labels, boxes
