"""Image-level labels teach the classifier through one pseudo box each.

Letters: Bi labels of image i, B over the batch, K classes, F width of a region's features.
"""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ovd_d2.errors import OVDError
from ovd_d2.losses import pseudo_box_loss
from ovd_d2.structures import Supervision

from .region_task import RegionTask


class ImageLabelSupervision(RegionTask):
    """RKD's pseudo-max-score loss, weighted; has no parameters.

    The mean is over the images that have a label, so that it does not matter whether they fill a
    batch of their own or share one with boxed images. ``image_label/accuracy`` in the event
    storage is the share of pseudo boxes whose best class is the label.
    """

    kind = Supervision.IMAGE_LABEL

    @configurable
    def __init__(self, *, weight: float):
        """
        Args:
            weight: factor on the loss, > 0.
        """
        super().__init__()
        if not weight > 0:
            raise OVDError(f"MODEL.IMAGE_LABELS.WEIGHT is {weight}; it must be 0 or above.")
        self.weight = weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        if not cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE:
            raise OVDError(
                "MODEL.IMAGE_LABELS.WEIGHT asks for image-level labels, whose loss has a sigmoid "
                "per class: set MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE True."
            )
        return {"weight": cfg.MODEL.IMAGE_LABELS.WEIGHT}

    def losses(
        self, predictor: nn.Module, features: Tensor, rows: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """``loss_image_label``, weight applied; 0 with a gradient path if B = 0.

        Args:
            predictor: its ``cls_score`` learns.
            features: (B, F) of the pseudo boxes.
            rows: per image, with ``gt_classes`` (Bi,) in [0, K).
        """
        logits = predictor.cls_score(features)
        no_labels = logits.new_zeros(0, dtype=torch.int64)
        labels = torch.cat([no_labels, *(of_image.gt_classes for of_image in rows)])
        counts = [len(of_image) for of_image in rows if len(of_image)]
        images = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.long))
        loss = pseudo_box_loss(logits, labels, images.to(labels.device), len(counts))
        if len(logits):
            with torch.no_grad():
                accuracy = (logits.argmax(dim=1) == labels).float().mean()
            get_event_storage().put_scalar("image_label/accuracy", accuracy)
        return {"loss_image_label": self.weight * loss}
