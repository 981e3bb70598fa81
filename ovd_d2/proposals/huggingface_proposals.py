"""Boxes of a detector of transformers: DETR and its kin, OWL, Grounding DINO.

Letters: Ri regions of image i.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image, nms

from ovd_d2.proposals.huggingface_detector import load_huggingface_detector
from ovd_d2.proposals.proposer import best
from ovd_d2.pseudo_labelling import Found

logger = logging.getLogger(__name__)

NMS_IOU = 0.7  # as an RPN's: some of these models give a box once for each of its classes
ASKED_FOR = "object"  # what detectors that need words are asked for


class HuggingFaceProposals:
    """Boxes and scores of a detector, its classes ignored.

    Detectors that need words (OWL, Grounding DINO) are asked for "object"; OWLv2's own score for
    "is an object" is used. Class-agnostic NMS at IoU 0.7 follows. No code of a model's repository
    is run.

    Args:
        name_or_folder: a model on the hub, or a folder that transformers saved.
        topk: boxes to keep per image.
        device: where to compute.

    Raises:
        OVDError: not a detector, or it cannot be loaded.
    """

    has_scores = True

    def __init__(self, name_or_folder: str, topk: int, device: str = "cpu") -> None:
        detector = load_huggingface_detector(name_or_folder, "--proposals", device)
        self._model, self._processor = detector.model, detector.processor
        self._needs_words = detector.needs_words
        self._device = device
        self._topk = topk
        self.name = f"{detector.identity}, top {topk}"

    @torch.inference_mode()
    def __call__(
        self, record: dict[str, Any], image: Tensor, classes: Sequence[int] | None = None
    ) -> list[Found]:
        """See :class:`~ovd_d2.proposals.proposer.BoxProposer`."""
        words = {"text": [[ASKED_FOR]]} if self._needs_words else {}
        pixels = image.permute(1, 2, 0).numpy()
        inputs = self._processor(
            images=[pixels], input_data_format="channels_last", return_tensors="pt", **words
        )
        outputs = self._model(**inputs.to(self._device))
        if getattr(outputs, "objectness_logits", None) is not None:
            outputs.logits = outputs.objectness_logits[..., None]
        found = self._postprocess(outputs, inputs, tuple(image.shape[1:]))
        boxes, scores = found["boxes"].float().cpu(), found["scores"].float().cpu()
        boxes = clip_boxes_to_image(boxes, image.shape[1:])
        kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1) & scores.isfinite()
        boxes, scores = boxes[kept], scores[kept]
        kept = nms(boxes, scores, NMS_IOU)
        return [best(boxes[kept], scores[kept], self._topk)]

    def _postprocess(self, outputs: Any, inputs: Any, size: tuple[int, int]) -> dict[str, Tensor]:
        """The model's own way from its outputs to boxes in pixels of the image."""
        settings: dict[str, Any] = {"threshold": 0.0, "target_sizes": [size]}
        if not self._needs_words:
            return self._processor.post_process_object_detection(outputs, **settings)[0]
        if "input_ids" in inputs and "dino" in self._model.config.model_type:
            settings |= {"input_ids": inputs["input_ids"], "text_threshold": 0.0}
        return self._processor.post_process_grounded_object_detection(outputs, **settings)[0]
