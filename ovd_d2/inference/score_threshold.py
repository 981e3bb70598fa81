"""Choice of the score threshold for showing detections, measured on a data set.

Letter: R detections over all images.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.data.build import dataset_errors
from ovd_d2.errors import OVDError
from ovd_d2.evaluation.presence_counts import Comparison, compare, image_truth, joined
from ovd_d2.language import Vocabulary

from .predictor import OpenVocabPredictor

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
    classes = Vocabulary.from_metadata(dataset)
    predictor.set_vocabulary(list(classes.names) if by_name else classes)
    found = compare_data_set(predictor, dataset, images)
    novel = np.array(classes.is_novel)
    objects = (int(found.objects[~novel].sum()), int(found.objects[novel].sum()))
    return Matches(
        found.scores.tolist(),
        found.right.tolist(),
        novel[found.classes].tolist(),
        dict(zip(KINDS, objects)),
    )


def compare_data_set(
    predictor: OpenVocabPredictor,
    dataset: str,
    images: int | None = None,
    on_image: Callable[[], None] = lambda: None,
) -> Comparison:
    """What ``predictor`` finds beside what is known of a data set's images.

    Args:
        predictor: its vocabulary is the data set's classes.
        dataset: a registered data set with boxes.
        images: the first so many of it; None: all.
        on_image: called after every image.

    Raises:
        OVDError: as :func:`match_data_set`.
    """
    with dataset_errors("dataset", [dataset]):
        records = DatasetCatalog.get(dataset)[:images]
    places = MetadataCatalog.get(dataset).get("thing_dataset_id_to_contiguous_id")
    num_classes, parts = len(predictor.vocabulary), []
    files = [os.fspath(record["file_name"]) for record in records]
    for record, prediction in zip(records, predictor.stream(files)):
        found = prediction.instances
        if found is None:
            raise OVDError("The model gives label maps: these have no score threshold to choose.")
        truth = image_truth(record, num_classes, places)
        parts.append(compare(truth, found.pred_boxes.tensor, found.scores, found.pred_classes))
        on_image()
    comparison = joined(parts, num_classes)
    if not comparison.objects.any():
        raise OVDError(f"data set {dataset} has no boxes to compare detections with.")
    return comparison


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
