"""What is known of an image, and what detections are worth by it: right, wrong, or not to be told.

Letters: R detections of an image, G boxes of its truth, K classes, T pairs (image, class), D
detections of a data set.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.structures import BoxMode
from torchvision.ops import box_area, box_iou

from ovd_d2.errors import OVDError

MIN_IOU = 0.5


@dataclass(frozen=True)
class ImageTruth:
    """What the annotations of one image say.

    Attributes:
        boxes: (G, 4) float64, x0 y0 x1 y1 in pixels.
        classes: (G,) int64 in [0, K).
        crowd: (G,) bool: several objects in one box.
        present: (K,) bool: a box of the class is there.
        absent: (K,) bool: no object of the class is there. Of the other classes nothing is known.
        incomplete: (K,) bool: there may be more objects of the class than boxes.
    """

    boxes: torch.Tensor
    classes: torch.Tensor
    crowd: torch.Tensor
    present: np.ndarray
    absent: np.ndarray
    incomplete: np.ndarray

    @property
    def objects(self) -> np.ndarray:
        """(K,) int64: boxes that are to be found, those of crowds left out."""
        return np.bincount(self.classes[~self.crowd], minlength=len(self.present))


def image_truth(
    record: Mapping[str, Any], num_classes: int, places: Mapping[int, int] | None = None
) -> ImageTruth:
    """The truth of one of Detectron2's dataset records.

    A record with ``neg_category_ids`` (LVIS) names the classes known to be absent; without it, all
    that have no box are. Of classes in ``not_exhaustive_category_ids`` more objects may be there.

    Args:
        record: with ``annotations``.
        num_classes: K.
        places: category id -> class in [0, K), for the two lists; None: ids count from 1.

    Raises:
        OVDError: a list has an id that no class has.
    """
    rows = record.get("annotations", ())
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in rows]
    classes = torch.tensor([a["category_id"] for a in rows], dtype=torch.int64)
    present = np.zeros(num_classes, dtype=bool)
    present[classes.numpy()] = True
    places = {k + 1: k for k in range(num_classes)} if places is None else places
    absent = ~present
    if "neg_category_ids" in record:
        absent = _flags(record, "neg_category_ids", num_classes, places) & ~present
    return ImageTruth(
        boxes=torch.tensor(np.array(boxes, dtype=np.float64).reshape(-1, 4)),
        classes=classes,
        crowd=torch.tensor([bool(a.get("iscrowd", 0)) for a in rows], dtype=torch.bool),
        present=present,
        absent=absent,
        incomplete=_flags(record, "not_exhaustive_category_ids", num_classes, places),
    )


def _flags(
    record: Mapping[str, Any], key: str, num_classes: int, places: Mapping[int, int]
) -> np.ndarray:
    flags = np.zeros(num_classes, dtype=bool)
    try:
        flags[[places[i] for i in record.get(key, ())]] = True
    except KeyError as error:
        raise OVDError(
            f"{key} of the image with image_id {record.get('image_id')!r} has the id {error}, "
            f"which none of the {num_classes} classes has: repair the annotation file."
        ) from None
    return flags


@dataclass(frozen=True)
class Comparison:
    """Detections beside the truth, of one image or, joined, of many.

    Attributes:
        classes: (D,) int64, of the detections that are right or wrong.
        scores: (D,) float64.
        right: (D,) bool: an object's by class and IoU (at least 0.5), and no better-scored
            detection has it.
        at_present: (D,) bool: the class is present in the image.
        pair_classes: (T,) int64, of pairs (image, class) where the class is known to be present, or
            to be absent although there is a detection of it.
        pair_scores: (T,) float64, best score of the class in the image; -inf without a detection.
        pair_present: (T,) bool.
        objects: (K,) int64.
        images_with: (K,) int64, images in which the class is known to be present.
        images_without: (K,) int64, in which it is known to be absent.
    """

    classes: np.ndarray
    scores: np.ndarray
    right: np.ndarray
    at_present: np.ndarray
    pair_classes: np.ndarray
    pair_scores: np.ndarray
    pair_present: np.ndarray
    objects: np.ndarray
    images_with: np.ndarray
    images_without: np.ndarray


_PER_CLASS = ("objects", "images_with", "images_without")


def joined(parts: Iterable[Comparison], num_classes: int) -> Comparison:
    """Those of several images as one."""
    parts = list(parts) or [compare(image_truth({}, num_classes), [], [], [])]
    fields = {name: [getattr(part, name) for part in parts] for name in vars(parts[0])}
    return Comparison(**{
        name: np.sum(values, axis=0) if name in _PER_CLASS else np.concatenate(values)
        for name, values in fields.items()
    })  # fmt: skip


def compare(
    truth: ImageTruth, boxes: Sequence | torch.Tensor, scores: Sequence, classes: Sequence
) -> Comparison:
    """Detections of one image beside its truth.

    Detections are matched as COCO does, best score first, each with the free object of its class
    that it overlaps most, by an IoU of at least 0.5. Neither right nor wrong is what has no object
    and is of a class of which nothing is known or which is incomplete, or lies in a crowd of its
    class (by at least half of its area).

    Args:
        truth: of the image.
        boxes: (R, 4), x0 y0 x1 y1 in its pixels.
        scores: (R,).
        classes: (R,) in [0, K).
    """
    scores = torch.as_tensor(scores, dtype=torch.float64)
    order = scores.argsort(descending=True, stable=True)
    scores = scores[order]
    boxes = torch.as_tensor(boxes, dtype=torch.float64).view(-1, 4)[order]
    classes = torch.as_tensor(classes, dtype=torch.int64)[order]
    of_class = classes[:, None] == truth.classes[None]
    overlap = box_iou(boxes, truth.boxes).where(of_class & ~truth.crowd, 0.0)
    right = greedy_matches(overlap.numpy())
    in_crowd = _share_inside(boxes, truth.boxes).where(of_class & truth.crowd, 0.0) >= MIN_IOU
    classes = classes.numpy()
    known = truth.present | truth.absent
    told = right | ~(truth.incomplete[classes] | in_crowd.any(dim=1).numpy())
    told &= known[classes]
    best = np.full(len(known), -np.inf)
    np.maximum.at(best, classes, scores.numpy())
    pairs = (truth.present | (truth.absent & np.isfinite(best))).nonzero()[0]
    return Comparison(
        classes=classes[told],
        scores=scores.numpy()[told],
        right=right[told],
        at_present=truth.present[classes[told]],
        pair_classes=pairs,
        pair_scores=best[pairs],
        pair_present=truth.present[pairs],
        objects=truth.objects,
        images_with=truth.present.astype(np.int64),
        images_without=truth.absent.astype(np.int64),
    )


def greedy_matches(overlap: np.ndarray) -> np.ndarray:
    """(R, G) IoUs of equal classes, best-scored detection first -> (R,) whether each gets an
    object; ``overlap`` is used up."""
    right = np.zeros(len(overlap), dtype=bool)
    if overlap.size:
        for row in (overlap.max(axis=1) >= MIN_IOU).nonzero()[0]:
            best = overlap[row].argmax()
            right[row] = overlap[row, best] >= MIN_IOU
            if right[row]:
                overlap[:, best] = 0.0  # taken
    return right


def _share_inside(boxes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """(R, G): how much of each of R boxes lies in each of G others."""
    low = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return (high - low).clamp(min=0).prod(dim=2) / box_area(boxes)[:, None].clamp(min=1e-12)


def f1(right: float, wrong: float, missed: float) -> float:
    """2 right / (2 right + wrong + missed); nan if there is nothing to count."""
    total = 2 * right + wrong + missed
    return 2 * right / total if total else math.nan
