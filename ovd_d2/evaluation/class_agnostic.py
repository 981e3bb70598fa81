"""Are the objects found, whatever they are called? AP50 and R50 of boxes without classes.

Letters: R detections, G objects of an image, E detections over the data set.

The protocol of MAVL (Maaz et al. 2022, section 4; VOC style): all classes are one, the N best
detections of an image count, boxes have a width of x2 - x1 + 1, and a detection is right if the
object it overlaps most, by an IoU *above* the threshold, has not been found by a better one.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode

from ovd_d2.errors import OVDError
from ovd_d2.evaluation.splits import every_image, results_table

logger = logging.getLogger(__name__)

NAME = "class_agnostic"
# By the share of the image's area that an object covers.
SIZES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "all": lambda share: share >= 0,
    "small": lambda share: share <= 0.05,
    "medium": lambda share: (share > 0.05) & (share < 0.2),
    "large": lambda share: share >= 0.2,
}


@dataclass
class Image:
    """One image: ``boxes`` (R, 4) and ``scores`` (R,) float of the detections, ``objects`` (G, 4),
    all x1 y1 x2 y2 in pixels, and its ``area`` in pixels."""

    boxes: np.ndarray
    scores: np.ndarray
    objects: np.ndarray
    area: float

    def of_size(self, size: str) -> np.ndarray:
        """(G,) bool, the objects of a size, a key of :data:`SIZES`."""
        sides = self.objects[:, 2:] - self.objects[:, :2]
        return SIZES[size](sides.prod(axis=1) / self.area)


@dataclass
class Curve:
    """``recall`` and ``precision`` (E,), detections of falling score; 0..1."""

    recall: np.ndarray
    precision: np.ndarray

    @property
    def average_precision(self) -> float:
        """Area under the curve, each precision raised to the best at higher recall; 0..1."""
        return area_under(self.recall, self.precision)

    @property
    def last_recall(self) -> float:
        """Recall of all that were counted; 0 if none was."""
        return float(self.recall[-1]) if len(self.recall) else 0.0


def area_under(recall: np.ndarray, precision: np.ndarray) -> float:
    """Area under a curve of (E,) rising recall, interpolated as by VOC 2010 and later."""
    recall = np.concatenate([[0.0], recall, [1.0]])
    envelope = np.maximum.accumulate(np.concatenate([[0.0], precision, [0.0]])[::-1])[::-1]
    return float(((recall[1:] - recall[:-1]) * envelope[1:]).sum())


def overlaps(boxes: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """(R, G) IoU of (R, 4) and (G, 4), widths x2 - x1 + 1."""
    first = np.maximum(boxes[:, None, :2], objects[None, :, :2])
    last = np.minimum(boxes[:, None, 2:], objects[None, :, 2:])
    shared = (last - first + 1).clip(min=0).prod(axis=2)
    return shared / (_areas(boxes)[:, None] + _areas(objects)[None] - shared)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)


def curve(
    images: Sequence[Image],
    *,
    topk: int = 50,
    threshold: float = 0.5,
    size: str = "all",
    count_empty: bool = True,
) -> Curve:
    """Precision over recall of a data set.

    Args:
        images: all of it.
        topk: N.
        threshold: of the IoU.
        size: a key of :data:`SIZES`; objects of another size are left out, and what is detected
            on them is wrong.
        count_empty: detections in images without any object are wrong; False: they do not count
            (the public code's two readers of annotations differ in this).
    """
    right, scores, number = [], [], 0
    for image in images:
        if not (count_empty or len(image.objects)):
            continue
        objects = image.objects[image.of_size(size)]
        number += len(objects)
        best = np.argsort(-image.scores, kind="stable")[:topk]
        scores.append(image.scores[best])
        right.append(_right(image.boxes[best], objects, threshold))
    flat, score = _joined(right, bool), _joined(scores, float)
    found = flat[np.argsort(-score, kind="stable")].cumsum()
    seen = np.arange(1, len(found) + 1)
    return Curve(found / max(number, 1), found / seen)


def _joined(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


def _right(boxes: np.ndarray, objects: np.ndarray, threshold: float) -> np.ndarray:
    """(R,) bool for boxes of falling score."""
    right = np.zeros(len(boxes), bool)
    if not len(objects):
        return right
    shared = overlaps(boxes, objects)
    free = np.ones(len(objects), bool)
    for k, g in enumerate(shared.argmax(axis=1)):
        right[k] = shared[k, g] > threshold and free[g]
        free[g] &= not right[k]
    return right


class ClassAgnosticEvaluator(DatasetEvaluator):
    """AP50 and R50 of any detector's boxes, or an RPN's, on any data set with boxes.

    ``evaluate()`` returns ``{"class_agnostic": {...}}`` in percent: "AP50", "R50", the same with
    "_small" (up to 5 % of the image), "_medium" and "_large" (20 % and more) behind, nan where no
    object is of that size; and "boxes", how many detections an image has, at most ``topk``. Crowds
    are no objects; "difficult" objects are as any other.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        topk: int = 50,
        count_empty: bool = True,
        distributed: bool = True,
    ) -> None:
        """Loads the data set.

        Args:
            dataset_name: a registered data set with boxes.
            topk: N, detections of an image that count, the best ones.
            count_empty: detections in images without any object are wrong; False: they do not
                count.
            distributed: gather the results of all processes on the main one.

        Raises:
            OVDError: no annotations.
        """
        records = DatasetCatalog.get(dataset_name)
        if not any("annotations" in record for record in records):
            raise OVDError(
                f"Data set '{dataset_name}' has no annotations, so what is in its images is not "
                "known: set TEST.CLASS_AGNOSTIC.ENABLED False."
            )
        self._records = {record["image_id"]: record for record in records}
        self._dataset, self._topk, self._distributed = dataset_name, topk, distributed
        self._count_empty = count_empty
        self.reset()

    def reset(self) -> None:
        """Forgets all predictions."""
        self._found: dict[Any, Image] = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Takes a batch of detections; of two for an image the first counts.

        Raises:
            OVDError: an image is not the data set's.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            image_id = sample["image_id"]
            if image_id not in self._records:
                raise OVDError(
                    f"The image with image_id {image_id!r} is not of data set '{self._dataset}': "
                    "predict and evaluate on the same data set."
                )
            boxes, scores, (height, width) = _detections(output)
            best = np.argsort(-scores, kind="stable")[: self._topk]
            objects = _objects(self._records[image_id])
            self._found.setdefault(
                image_id, Image(boxes[best], scores[best], objects, float(height * width))
            )

    def evaluate(self) -> dict[str, dict[str, float]]:
        """The metrics on the main process; {} on the others.

        Raises:
            OVDError: an image was not predicted.
        """
        found = every_image(self._found, self._records, self._dataset, self._distributed)
        if found is None:
            return {}
        rows = {size: self._row(list(found.values()), size) for size in SIZES}
        logger.info(
            "Boxes of '%s' whatever their classes, the %d best of an image:\n%s",
            *(self._dataset, self._topk, results_table(rows, ("AP50", "R50"), of="objects")),
        )
        results = dict(rows.pop("all"))
        for size, row in rows.items():
            results |= {f"{metric}_{size}": value for metric, value in row.items()}
        results["boxes"] = float(np.mean([len(image.boxes) for image in found.values()] or [0]))
        return {NAME: results}

    def _row(self, images: Sequence[Image], size: str) -> Mapping[str, float]:
        found = curve(images, topk=self._topk, size=size, count_empty=self._count_empty)
        if not any(image.of_size(size).any() for image in images):
            return {"AP50": float("nan"), "R50": float("nan")}
        return {"AP50": 100 * found.average_precision, "R50": 100 * found.last_recall}


def _detections(output: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Boxes (R, 4), scores (R,) and the image's height and width; of a network that only proposes
    boxes its proposals."""
    if "instances" in output:
        found = output["instances"]
        boxes, scores = found.pred_boxes, found.scores
    else:
        found = output["proposals"]
        boxes, scores = found.proposal_boxes, found.objectness_logits
    boxes, scores = (t.detach().cpu().double().numpy() for t in (boxes.tensor, scores))
    return boxes, scores, found.image_size


def _objects(record: dict[str, Any]) -> np.ndarray:
    boxes = [
        BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
        for a in record.get("annotations", ())
        if not a.get("iscrowd", 0)
    ]
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
