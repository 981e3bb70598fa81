"""Boxes for words by a detector of transformers: Grounding DINO, OWL, OmDet-Turbo.

Letters: B texts in a batch, Ri boxes of a query.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert

from ovd_d2.errors import OVDError
from ovd_d2.proposals.huggingface_detector import load_huggingface_detector
from ovd_d2.pseudo_labelling import Found

CPU_QUERIES, GPU_QUERIES = 4, 16  # texts that go through the model together


class HuggingFaceQueries:
    """A :class:`~ovd_d2.pseudo_labelling.QueryDetector` out of a zero-shot detector.

    Every query is a text of its own, so that its scores are what the model says about it alone: in
    a prompt of several names a box would get the score of whichever name fits best. No code of a
    model's repository is run.

    * Grounding DINO, MM-Grounding-DINO: "every cat.", lower case, with a full stop; a box scores
      the largest probability over the tokens of its text, as in the authors' demo. The image and
      each text go through the model as a pair.
    * OWL-ViT, OWLv2: one pass per image and batch of texts; texts do not see each other.
    * OmDet-Turbo: one class per text, without its own NMS.

    Args:
        name_or_folder: a model on the hub, or a folder that transformers saved.
        device: where to compute.
        batch: texts that go through the model together; 0: 4 on a CPU, 16 elsewhere.

    Raises:
        OVDError: not a detector that can be asked, or it cannot be loaded.
    """

    def __init__(self, name_or_folder: str, device: str = "cpu", batch: int = 0) -> None:
        detector = load_huggingface_detector(name_or_folder, "--detector", device)
        if not detector.needs_words:
            raise OVDError(
                f"--detector hf:{name_or_folder} is a {detector.kind}, which cannot be asked for "
                "words; give a zero-shot detector such as Grounding DINO, OWLv2 or OmDet-Turbo"
            )
        self._model, self._processor = detector.model, detector.processor
        self._device = device
        self._batch = batch or (CPU_QUERIES if device == "cpu" else GPU_QUERIES)
        self._kind = detector.kind
        self.name = detector.identity

    @torch.inference_mode()
    def __call__(self, image: Tensor, queries: Sequence[str]) -> list[Found]:
        """See :class:`~ovd_d2.pseudo_labelling.QueryDetector`."""
        found: list[Found] = []
        for start in range(0, len(queries), self._batch):
            found += self._ask(image, list(queries[start : start + self._batch]))
        return found

    def _ask(self, image: Tensor, queries: list[str]) -> list[Found]:
        if "owl" in self._kind:
            return self._ask_owl(image, queries)
        count, size = len(queries), tuple(image.shape[1:])
        if "dino" in self._kind:
            inputs, outputs = self._forward(image, count, [dino_text(query) for query in queries])
            return dino_boxes(outputs.logits, outputs.pred_boxes, size)
        inputs, outputs = self._forward(image, count, [[query] for query in queries])
        settings: dict[str, Any] = {"threshold": 0.0, "target_sizes": [size] * count}
        if "omdet" in self._kind:
            settings["nms_threshold"] = 1.0
        found = self._processor.post_process_grounded_object_detection(outputs, **settings)
        return [_best_first(one["boxes"], one["scores"]) for one in found]

    def _ask_owl(self, image: Tensor, queries: list[str]) -> list[Found]:
        _, outputs = self._forward(image, 1, [queries])
        logits, found = outputs.logits, []
        for column in range(len(queries)):
            outputs.logits = logits[..., column : column + 1]  # one query's scores at a time
            one = self._processor.post_process_grounded_object_detection(
                outputs, threshold=0.0, target_sizes=[tuple(image.shape[1:])]
            )[0]
            found.append(_best_first(one["boxes"], one["scores"]))
        return found

    def _forward(self, image: Tensor, count: int, text: list[Any]) -> tuple[Any, Any]:
        """``count`` copies of the image with their texts, through processor and model."""
        pixels = image.permute(1, 2, 0).numpy()
        padding = {} if "omdet" in self._kind else {"padding": True}  # it pads by itself
        inputs = self._processor(
            images=[pixels] * count,
            text=text,
            input_data_format="channels_last",
            return_tensors="pt",
            **padding,
        ).to(self._device)
        return inputs, self._model(**inputs)


def dino_text(query: str) -> str:
    """A query as Grounding DINO was trained: lower case, one phrase, closed by a full stop."""
    phrase = " ".join(query.lower().replace(".", " ").split())
    return f"{phrase}."


def dino_boxes(logits: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[Found]:
    """Boxes and scores of each text.

    Args:
        logits: (B, Ri, T) per token; -inf where a text has none.
        boxes: (B, Ri, 4) relative cxcywh.
        size: (height, width) of the image.
    """
    height, width = size
    scale = torch.tensor([width, height, width, height], dtype=torch.float32)
    absolute = box_convert(boxes.float().cpu(), "cxcywh", "xyxy") * scale
    scores = logits.float().sigmoid().amax(dim=-1).cpu()
    return [_best_first(*pair) for pair in zip(absolute, scores)]


def _best_first(boxes: Tensor, scores: Tensor) -> Found:
    boxes, scores = boxes.float().cpu(), scores.float().cpu()
    order = scores.argsort(descending=True, stable=True)
    return boxes[order], scores[order]
