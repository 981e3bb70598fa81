"""Which regions of an image-text pair meet its words (DetCLIPv2, section 3.3 and table 4).

Letters: N images, A anchors, M concepts of the local batch, D embedding width, Q regions kept.
"""

from collections.abc import Sequence

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes
from torch import Tensor
from torchvision.ops import nms

from ovd_d2.errors import OVDError

from .concept_head import RegionOutputs

# What the objectness of a region is. Those of QUALITIES are trained on boxes as an output of the
# head's own: "class_score" whether an object is matched, "iou" the overlap of the predicted box.
SCORES = (
    "batch_text", "own_text", "centerness", "batch_text_centerness", "class_score", "iou",
)  # fmt: skip
QUALITIES = ("class_score", "iou")


class RegionChoice:
    """Objectness, class-agnostic NMS, the best Q; nothing of it has a gradient.

    Objectness is by default the largest similarity with any concept of the local batch, the
    paper's choice: a region that shows what another image's caption names is an object too.
    """

    def __init__(
        self,
        *,
        box2box_transform: Box2BoxTransform,
        score: str = "batch_text",
        regions: int = 100,
        before_nms: int = 1000,
        nms_threshold: float = 0.6,
    ) -> None:
        """
        Args:
            box2box_transform: code of the box deltas.
            score: one of ``SCORES``.
            regions: Q at most.
            before_nms: best regions that NMS sees.
            nms_threshold: of two boxes with a higher IoU the less object-like one goes.

        Raises:
            OVDError: unknown ``score``.
        """
        if score not in SCORES:
            raise OVDError(f"score is {score!r}; it must be one of {', '.join(SCORES)}.")
        self.box2box_transform = box2box_transform
        self.score = score
        self.regions = regions
        self.before_nms = before_nms
        self.nms_threshold = nms_threshold

    @torch.no_grad()
    def __call__(
        self,
        anchors: Sequence[Boxes],
        outputs: RegionOutputs,
        concepts: Tensor,
        bias: Tensor,
        own_concepts: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            anchors: per level.
            outputs: of N images.
            concepts: (M, D) of norm 1, of the local batch.
            bias: scalar, of the logits.
            own_concepts: per image the places of its own text's concepts, int64.

        Returns:
            (N, Q) int64 anchors, best first; (N, Q) bool, False where an image has fewer (such
            places hold anchor 0); (N, Q) fp32 areas of their boxes, in pixels.
        """
        objectness = self._objectness(outputs, concepts, bias, own_concepts)
        every = Boxes.cat(list(anchors)).tensor
        count = len(objectness)
        places = torch.zeros(count, self.regions, dtype=torch.int64, device=every.device)
        mask = torch.zeros_like(places, dtype=torch.bool)
        areas = every.new_zeros(places.shape)
        best = objectness.topk(min(self.before_nms, objectness.shape[1]), dim=1)
        for image, (scores, rows) in enumerate(zip(*best)):
            deltas = outputs.box_deltas[image, rows]
            boxes = self.box2box_transform.apply_deltas(deltas, every[rows])
            kept = nms(boxes, scores, self.nms_threshold)[: self.regions]
            places[image, : len(kept)] = rows[kept]
            mask[image, : len(kept)] = True
            areas[image, : len(kept)] = Boxes(boxes[kept]).area()
        return places, mask, areas

    def _objectness(
        self,
        outputs: RegionOutputs,
        concepts: Tensor,
        bias: Tensor,
        own_concepts: Sequence[Tensor],
    ) -> Tensor:
        """(N, A)."""
        if self.score in QUALITIES:
            return outputs.quality.sigmoid()
        if self.score == "centerness":
            return outputs.centerness.sigmoid()
        if self.score == "own_text":
            best = [
                (regions @ concepts[own].T).amax(dim=1)
                for regions, own in zip(outputs.regions, own_concepts)
            ]
            return (torch.stack(best) + bias).sigmoid()
        best = (outputs.regions @ concepts.T).amax(dim=2)
        objectness = (best + bias).sigmoid()
        if self.score == "batch_text_centerness":
            objectness = (objectness * outputs.centerness.sigmoid()).sqrt()
        return objectness
