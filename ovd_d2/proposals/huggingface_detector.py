"""Detectors of transformers, a class per family of models.

Letters: P queries, Ri boxes of one query on image i, L tokens, H, W height and width of an image.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from ovd_d2.encoders.huggingface import encoder_id, model_folder
from ovd_d2.encoders.huggingface_detectors import ZERO_SHOT_CLASSES, dino_phrase, load_detector
from ovd_d2.errors import OVDError
from ovd_d2.proposals.proposer import best
from ovd_d2.pseudo_labelling import Found

CPU_QUERIES, GPU_QUERIES = 4, 16  # that go through a model together
OBJECT = "object"  # what models that need a query are asked for where none is given


class HuggingFaceDetector:
    """A :class:`~ovd_d2.proposals.queries.QueryDetector` out of a model and its processor.

    Every query is a text of its own, so that its scores are what the model says about it alone: in
    a prompt of several names a box would get the score of whichever name fits best.

    Args:
        model: in eval mode, without gradients.
        processor: makes its inputs, and boxes of its outputs.
        name: "hf:MODEL_TYPE@DIGEST".
        batch: queries that go through the model together.

    Attributes:
        takes_queries: whether it can be asked in words.
    """

    takes_queries = True
    auto_classes = ZERO_SHOT_CLASSES

    def __init__(self, model: nn.Module, processor: Any, name: str, batch: int) -> None:
        self._model, self._processor, self._batch = model, processor, batch
        self.name = name

    @torch.inference_mode()
    def __call__(self, image: Tensor, queries: Sequence[str]) -> list[Found]:
        """Boxes for each of P queries, as ``QueryDetector`` defines them."""
        starts = range(0, len(queries), self._batch)
        parts = (self._ask(image, list(queries[k : k + self._batch])) for k in starts)
        found = ((b.float().cpu(), s.float().cpu()) for part in parts for b, s in part)
        return [best(boxes, scores, len(scores)) for boxes, scores in found]

    @torch.inference_mode()
    def objects(self, image: Tensor) -> Found:
        """Class-agnostic boxes, not cut to the image, in no order.

        Args:
            image: (3, H, W) uint8, RGB.
        """
        boxes, scores = self._objects(image)
        return boxes.float().cpu(), scores.float().cpu()

    def _ask(self, image: Tensor, queries: list[str]) -> list[Found]:
        raise NotImplementedError

    def _objects(self, image: Tensor) -> Found:
        return self._ask(image, [OBJECT])[0]

    def _forward(self, image: Tensor, copies: int = 1, **words: Any) -> Any:
        """Outputs of the model for copies of the image with their texts."""
        inputs = self._processor(
            images=[image.permute(1, 2, 0).numpy()] * copies,
            input_data_format="channels_last",
            return_tensors="pt",
            **words,
        )
        return self._model(**inputs.to(self._model.device))


class ClosedSetDetector(HuggingFaceDetector):
    """DETR and its kin: boxes with the score of their best class."""

    takes_queries = False
    auto_classes = ("AutoModelForObjectDetection", "AutoImageProcessor")

    def _objects(self, image: Tensor) -> Found:
        (found,) = self._processor.post_process_object_detection(
            self._forward(image), threshold=0.0, target_sizes=[tuple(image.shape[1:])]
        )
        return found["boxes"], found["scores"]


class GroundingDinoDetector(HuggingFaceDetector):
    """Grounding DINO, MM Grounding DINO: each pair of image and text goes through the model.

    A box scores the largest probability over the tokens of its text, as in the authors' demo.
    """

    def _ask(self, image: Tensor, queries: list[str]) -> list[Found]:
        texts = [dino_text(query) for query in queries]
        outputs = self._forward(image, len(texts), text=texts, padding=True)
        boxes = box_convert(outputs.pred_boxes.float(), "cxcywh", "xyxy")  # (P, Ri, 4), relative
        scores = outputs.logits.float().sigmoid().amax(dim=-1)  # of (P, Ri, L); -inf: no token
        height, width = image.shape[1:]
        return list(zip(boxes * boxes.new_tensor([width, height, width, height]), scores))


class OwlDetector(HuggingFaceDetector):
    """OWL-ViT: one pass for an image and all texts of a batch, which do not see each other."""

    def _ask(self, image: Tensor, queries: list[str]) -> list[Found]:
        outputs = self._forward(image, text=[queries], padding=True)
        return [self._found(outputs, one, image) for one in outputs.logits.split(1, dim=-1)]

    def _found(self, outputs: Any, logits: Tensor, image: Tensor) -> Found:
        """All boxes with the scores of ``logits``, (1, Ri, 1)."""
        outputs.logits = logits
        (found,) = self._processor.post_process_grounded_object_detection(
            outputs, threshold=0.0, target_sizes=[tuple(image.shape[1:])]
        )
        return found["boxes"], found["scores"]


class Owlv2Detector(OwlDetector):
    """OWLv2: OWL-ViT with a score of its own for "is an object"."""

    def _objects(self, image: Tensor) -> Found:
        outputs = self._forward(image, text=[[OBJECT]])
        return self._found(outputs, outputs.objectness_logits[..., None], image)


class OmDetTurboDetector(HuggingFaceDetector):
    """OmDet-Turbo: one class per text; its own NMS acts on objects alone."""

    def _ask(self, image: Tensor, queries: list[str], nms_threshold: float = 1.0) -> list[Found]:
        outputs = self._forward(image, len(queries), text=[[query] for query in queries])
        found = self._processor.post_process_grounded_object_detection(
            outputs,
            threshold=0.0,
            nms_threshold=nms_threshold,
            target_sizes=[tuple(image.shape[1:])] * len(queries),
        )
        return [(one["boxes"], one["scores"]) for one in found]

    def _objects(self, image: Tensor) -> Found:
        return self._ask(image, [OBJECT], nms_threshold=0.5)[0]


FAMILIES: dict[str, type[HuggingFaceDetector]] = {
    "grounding-dino": GroundingDinoDetector,
    "mm-grounding-dino": GroundingDinoDetector,
    "omdet-turbo": OmDetTurboDetector,
    "owlv2": Owlv2Detector,
    "owlvit": OwlDetector,
    **dict.fromkeys(
        ("conditional_detr", "d_fine", "dab-detr", "deformable_detr", "deimv2", "deta", "detr",
         "lw_detr", "rf_detr", "rt_detr", "rt_detr_v2", "table-transformer", "yolos"),
        ClosedSetDetector,
    ),
}  # fmt: skip
"""By the ``model_type`` of a model's config.json."""


def open_huggingface_detector(
    name_or_folder: str, asked: str, device: str = "cpu", *, batch: int = 0, queries: bool = False
) -> HuggingFaceDetector:
    """Opens a detector. No code of a model's repository is run.

    Args:
        name_or_folder: a model on the hub, or a folder that transformers saved.
        asked: what named it, for messages.
        device: where to compute.
        batch: queries that go through the model together; 0: 4 on a CPU, 16 elsewhere.
        queries: whether it must take queries.

    Raises:
        OVDError: no detector of :data:`FAMILIES`, one that cannot be loaded, or a closed-set one
            where queries are to be asked.
    """
    folder = model_folder(name_or_folder)
    name = encoder_id(folder)
    model_type = name.removeprefix("hf:").partition("@")[0]
    family = FAMILIES.get(model_type)
    if family is None:
        raise OVDError(
            f"{asked} cannot be used: its model_type is {model_type}, detectors are "
            f"{', '.join(sorted(FAMILIES))}"
        )
    if queries and not family.takes_queries:
        raise OVDError(
            f"{asked} is a {model_type}, which cannot be asked for words; give a zero-shot "
            "detector such as Grounding DINO, OWLv2 or OmDet-Turbo"
        )
    model, processor = load_detector(folder, asked, family.auto_classes)
    model = model.requires_grad_(False).to(device)
    batch = batch or (CPU_QUERIES if device == "cpu" else GPU_QUERIES)
    return family(model, processor, name, batch)


def dino_text(query: str) -> str:
    """A query as a caption of one phrase, closed by a full stop."""
    return f"{dino_phrase(query)}."
