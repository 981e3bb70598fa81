"""Choice of the score threshold for showing detections, measured on a data set.

Letters: R detections over all images, Ri of image i, Gi objects of image i.
"""

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from torchvision.ops import box_iou

from ovd_d2.data.build import dataset_errors
from ovd_d2.errors import OVDError
from ovd_d2.language import Vocabulary

from .predictor import OpenVocabPredictor

MIN_IOU = 0.5
IMAGES = 300
LOWEST = 0.01  # thresholds below are not considered
KINDS = ("base", "novel")


@dataclass
class Matches:
    """Detections and objects of a data set, matched.

    Attributes:
        scores: R scores.
        right: R flags: box (IoU of 0.5) and name are an object's, and no better-scored detection
            has it.
        novel: R flags: the detection's class is a novel one.
        objects: number of objects of base and of novel classes.
    """

    scores: list[float] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    novel: list[bool] = field(default_factory=list)
    objects: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))

    def counts(self, threshold: float) -> dict[str, dict[str, int]]:
        """By kind: objects "found" at ``threshold``, "of" how many, with how many "detections"."""
        shown = np.array(self.scores) > threshold
        right, novel = np.array(self.right, bool), np.array(self.novel, bool)
        rows = {"base": shown & ~novel, "novel": shown & novel}
        return {
            kind: {
                "found": int((rows[kind] & right).sum()),
                "of": self.objects[kind],
                "detections": int(rows[kind].sum()),
            }
            for kind in KINDS
        }

    def quality(self, threshold: float) -> float:
        """Harmonic mean of the F1 of base and of novel classes, of the kinds that there are."""
        values = [
            2 * count["found"] / (count["of"] + count["detections"])
            for count in self.counts(threshold).values()
            if count["of"]
        ]
        return len(values) / sum(1 / value for value in values) if values and all(values) else 0.0

    def best_threshold(self) -> float:
        """The threshold, in hundredths, of the best :meth:`quality`; of equals the lowest."""
        return max((k / 100 for k in range(1, 100)), key=self.quality)


def match_data_set(
    predictor: OpenVocabPredictor, dataset: str, images: int = IMAGES, *, by_name: bool = False
) -> Matches:
    """Compares what ``predictor`` finds with the boxes of a data set.

    Args:
        predictor: with a score threshold of at most :data:`LOWEST`; it gets the data set's classes.
        dataset: a registered data set with boxes; which classes are novel is known from its
            metadata.
        images: the first so many of it.
        by_name: give the classes as a user types them, by names alone.

    Raises:
        OVDError: no such data set, no boxes in it, or an image that cannot be read.
    """
    with dataset_errors("dataset", [dataset]):
        records = DatasetCatalog.get(dataset)[:images]
    classes = Vocabulary.from_metadata(dataset)
    predictor.set_vocabulary(list(classes.names) if by_name else classes)
    matches = Matches()
    files = [os.fspath(record["file_name"]) for record in records]
    for record, prediction in zip(records, predictor.stream(files)):
        objects = [a for a in record.get("annotations", ()) if not a.get("iscrowd")]
        truth = torch.tensor([a["category_id"] for a in objects], dtype=torch.long)
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
        found = prediction.instances
        if found is None:
            raise OVDError("The model gives label maps: these have no score threshold to choose.")
        overlap = box_iou(found.pred_boxes.tensor, torch.tensor(boxes).float().view(-1, 4))
        same = found.pred_classes[:, None] == truth[None, :]
        matches.right += _match(overlap.where(same, 0.0))
        matches.scores += found.scores.tolist()
        matches.novel += [classes.is_novel[k] for k in found.pred_classes.tolist()]
        for k in truth.tolist():
            matches.objects[KINDS[classes.is_novel[k]]] += 1
    if not sum(matches.objects.values()):
        raise OVDError(f"data set {dataset} has no boxes to compare detections with.")
    return matches


def _match(overlap: torch.Tensor) -> list[bool]:
    """(Ri, Gi) IoUs of equal names, best-scored detection first -> whether each is right."""
    right = []
    for row in overlap:
        best = int(row.argmax()) if row.numel() else 0
        right.append(bool(row.numel() and row[best] >= MIN_IOU))
        if right[-1]:
            overlap[:, best] = 0.0  # taken
    return right


def choose_score_threshold(
    predictor: OpenVocabPredictor, dataset: str, images: int = IMAGES
) -> dict[str, Any]:
    """The threshold of the best quality on ``dataset``, as facts.

    Returns:
        ``score_threshold``, and ``score_threshold_chosen``: the data set, its images, and what is
        found at the threshold.

    Raises:
        OVDError: as :func:`match_data_set`.
    """
    if predictor.score_threshold > LOWEST:
        raise OVDError(
            f"score_threshold of the predictor is {predictor.score_threshold}; to choose one it "
            f"must be {LOWEST} at most."
        )
    matches = match_data_set(predictor, dataset, images)
    best = matches.best_threshold()
    how = {"dataset": dataset, "first_images": images, **matches.counts(best)}
    return {"score_threshold": best, "score_threshold_chosen": how}
