"""Is it there? Names asked of images, by one score threshold: F1 of images, F1 of boxes, cgF1.

Letters: R detections of an image, K classes.

In the spirit of SA-Co's cgF1 (Carion et al. 2025, "SAM 3: Segment Anything with Concepts"), which
is the micro F1 of what is found where it is, times the Matthews correlation coefficient of "it is
there" over pairs of an image and a name. What differs from its public evaluator:

* the pairs are those of an annotated data set: an image and a name that is known to be in it, or
  known not to be (``neg_category_ids`` of LVIS; elsewhere every name without a box);
* boxes, at an IoU of 0.5 alone (there the mean over 0.5 to 0.95 comes first), matched greedily by
  score as COCO does, so that one matching holds for every threshold (there: of most IoU in all);
* a name of which there is but a crowd is there (there: not); detections in a crowd do not count,
  nor do those without an object of names that are not exhaustively annotated;
* where pairs of one kind are missing the coefficient is nan (there: 0).
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from ovd_d2.errors import OVDError
from ovd_d2.evaluation.presence_counts import Comparison, compare, f1, image_truth, joined
from ovd_d2.evaluation.splits import (
    check_predicted_classes,
    every_image,
    novel_mask,
    results_table,
)
from ovd_d2.language import Vocabulary

logger = logging.getLogger(__name__)

THRESHOLDS = tuple(k / 100 for k in range(1, 100))
GIVEN, SWEPT = "presence", "presence_at_best_of_same_data"
COLUMNS = (
    "cgF1_50", "pmF1_50", "IL_MCC", "IL_F1", "IL_precision", "IL_recall", "F1_50", "IL_F1_names"
)  # fmt: skip
_SHOWN = 10  # names in the log


def class_counts(comparison: Comparison, threshold: float) -> dict[str, np.ndarray]:
    """What is right and wrong from ``threshold`` on, each (K,) int64.

    Returns:
        boxes: "found", "missed", "wrong", "wrong_at_present" (of those in images that have the
        class); images: "yes_right", "yes_wrong", "no_right", "no_wrong".
    """
    num_classes = len(comparison.objects)

    def count(classes: np.ndarray, flags: np.ndarray) -> np.ndarray:
        return np.bincount(classes[flags], minlength=num_classes)

    shown = comparison.scores >= threshold
    wrong = shown & ~comparison.right
    said = comparison.pair_scores >= threshold
    found = count(comparison.classes, shown & comparison.right)
    yes_right = count(comparison.pair_classes, said & comparison.pair_present)
    yes_wrong = count(comparison.pair_classes, said & ~comparison.pair_present)
    return {
        "found": found,
        "missed": comparison.objects - found,
        "wrong": count(comparison.classes, wrong),
        "wrong_at_present": count(comparison.classes, wrong & comparison.at_present),
        "yes_right": yes_right,
        "yes_wrong": yes_wrong,
        "no_right": comparison.images_without - yes_wrong,
        "no_wrong": comparison.images_with - yes_right,
    }


def presence_metrics(counts: dict[str, np.ndarray], chosen: np.ndarray) -> dict[str, float]:
    """The metrics over some classes.

    Args:
        counts: of :func:`class_counts`.
        chosen: (K,) bool.

    Returns:
        In percent: "F1_50", of all boxes; "pmF1_50", its wrong ones those in images that have the
        class alone; "IL_F1", "IL_precision", "IL_recall" over pairs of image and class, and
        "IL_F1_names", the mean over the classes that some image has; "cgF1_50", pmF1_50 * IL_MCC.
        In [-1, 1]: "IL_MCC", 0 if all answers are the same. nan: nothing to count.
    """
    total = {name: int(values[chosen].sum()) for name, values in counts.items()}
    yes_right, yes_wrong, no_right, no_wrong = (
        total[name] for name in ("yes_right", "yes_wrong", "no_right", "no_wrong")
    )
    positive = f1(total["found"], total["wrong_at_present"], total["missed"])
    correlation = matthews(yes_right, yes_wrong, no_right, no_wrong)
    held = chosen & (counts["yes_right"] + counts["no_wrong"] > 0)
    names = image_f1(counts)[held]
    return {
        "cgF1_50": 100 * positive * correlation,
        "pmF1_50": 100 * positive,
        "IL_MCC": correlation,
        "IL_F1": 100 * f1(yes_right, yes_wrong, no_wrong),
        "IL_precision": _percent(yes_right, yes_wrong),
        "IL_recall": _percent(yes_right, no_wrong),
        "F1_50": 100 * f1(total["found"], total["wrong"], total["missed"]),
        "IL_F1_names": 100 * float(names.mean()) if len(names) else math.nan,
    }


def image_f1(counts: dict[str, np.ndarray]) -> np.ndarray:
    """(K,) F1 of "it is there" of each class, in [0, 1]; 0 where nothing is."""
    right = counts["yes_right"]
    return 2 * right / np.maximum(2 * right + counts["yes_wrong"] + counts["no_wrong"], 1)


def matthews(yes_right: int, yes_wrong: int, no_right: int, no_wrong: int) -> float:
    """Matthews correlation coefficient of answers, in [-1, 1]; 0 if all are the same, nan if one
    of them is never right to give."""
    if not (yes_right + no_wrong and no_right + yes_wrong):
        return math.nan
    product = float(yes_right + yes_wrong) * (yes_right + no_wrong)
    product *= float(no_right + yes_wrong) * (no_right + no_wrong)
    difference = float(yes_right) * no_right - float(yes_wrong) * no_wrong
    return difference / math.sqrt(product) if product else 0.0


def best_threshold(comparison: Comparison, chosen: np.ndarray) -> float:
    """The threshold, in hundredths, of the best cgF1_50, or of the best F1_50 where that is nan;
    of equals the lowest."""
    rows = [presence_metrics(class_counts(comparison, t), chosen) for t in THRESHOLDS]
    by = "F1_50" if math.isnan(rows[0]["IL_MCC"]) else "cgF1_50"
    values = np.nan_to_num([row[by] for row in rows], nan=-np.inf)
    return THRESHOLDS[int(values.argmax())]


def _percent(right: int, other: int) -> float:
    return 100 * right / (right + other) if right + other else math.nan


class PresenceEvaluator(DatasetEvaluator):
    """Whether the names of a data set are found where they are, and nowhere else.

    An image "has" a name if a detection of it reaches the threshold. ``evaluate()`` returns
    ``{"presence": metrics}``, those of :func:`presence_metrics`, cgF1_50 and IL_F1 of base and
    novel classes where those are marked, "IL_F1-NAME" of every name that an image has, and
    "threshold". Without a threshold it is the one that is best on this very data, and the metrics
    are called "presence_at_best_of_same_data": nobody knows it before.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        threshold: float | None = None,
        is_novel: Sequence[bool] | None = None,
        distributed: bool = True,
    ) -> None:
        """Loads the data set.

        Args:
            dataset_name: a registered data set with boxes.
            threshold: in 0..1; None: the best one.
            is_novel: (K,) instead of the metadata's; None to take those.
            distributed: gather the results of all processes on the main one.

        Raises:
            OVDError: no annotations, or a threshold outside.
        """
        if threshold is not None and not 0 <= threshold <= 1:
            raise OVDError(f"threshold is {threshold}; it must be in 0..1.")
        records = DatasetCatalog.get(dataset_name)
        if not any("annotations" in record for record in records):
            raise OVDError(
                f"Data set '{dataset_name}' has no annotations, so what is in its images is not "
                "known: set TEST.PRESENCE.ENABLED False."
            )
        metadata = MetadataCatalog.get(dataset_name)
        self._records = {record["image_id"]: record for record in records}
        self._names = Vocabulary.from_metadata(dataset_name).names
        self._places = metadata.get("thing_dataset_id_to_contiguous_id")
        scored = metadata.get("is_scored") or [True] * len(self._names)
        self._scored = np.asarray(scored, dtype=bool)
        self._novel = novel_mask(metadata, len(self._names), is_novel)
        self._dataset, self._threshold, self._distributed = dataset_name, threshold, distributed
        self._lowest = THRESHOLDS[0] if threshold is None else threshold
        self.reset()

    def reset(self) -> None:
        """Forgets all predictions."""
        self._found: dict[Any, Comparison] = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Compares a batch of predictions with what is known; of two for an image the first counts.

        Raises:
            OVDError: an image or a class is not the data set's.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            image_id, found = sample["image_id"], output["instances"]
            if image_id not in self._records:
                raise OVDError(
                    f"The image with image_id {image_id!r} is not of data set '{self._dataset}': "
                    "predict and evaluate on the same data set."
                )
            if image_id in self._found:
                continue
            found = found[found.scores >= self._lowest].to("cpu")
            if len(found):
                largest = int(found.pred_classes.max())
                check_predicted_classes(largest, len(self._names), self._dataset)
            truth = image_truth(self._records[image_id], len(self._names), self._places)
            boxes = found.pred_boxes.tensor
            self._found[image_id] = compare(truth, boxes, found.scores, found.pred_classes)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """The metrics on the main process; {} on the others.

        Raises:
            OVDError: an image was not predicted.
        """
        found = every_image(self._found, self._records, self._dataset, self._distributed)
        if found is None:
            return {}
        comparison = joined(found.values(), len(self._names))
        threshold = self._threshold
        if threshold is None:
            threshold = best_threshold(comparison, self._scored)
        counts = class_counts(comparison, threshold)
        groups = {"all": self._scored}
        if self._novel is not None:
            groups["base"] = self._scored & ~self._novel
            groups["novel"] = self._scored & self._novel
        rows = {name: presence_metrics(counts, chosen) for name, chosen in groups.items()}
        of_names = self._of_names(counts)
        self._log(rows, of_names, threshold)
        results = {"threshold": threshold, **rows.pop("all")}
        for name, row in rows.items():
            results |= {f"{key}_{name}": row[key] for key in ("cgF1_50", "IL_F1")}
        results |= {f"IL_F1-{name}": value for name, value in of_names.items()}
        return {SWEPT if self._threshold is None else GIVEN: results}

    def _of_names(self, counts: dict[str, np.ndarray]) -> dict[str, float]:
        """Percent of the names that some image has."""
        held = self._scored & (counts["yes_right"] + counts["no_wrong"] > 0)
        values = 100 * image_f1(counts)
        return {self._names[k]: float(values[k]) for k in held.nonzero()[0]}

    def _log(
        self, rows: dict[str, dict[str, float]], of_names: dict[str, float], threshold: float
    ) -> None:
        how = (
            "given" if self._threshold is not None else "the best on this very data, so optimistic"
        )
        logger.info(
            "Presence on %s at score threshold %g (%s):\n%s",
            *(self._dataset, threshold, how, results_table(rows, COLUMNS)),
        )
        if math.isnan(rows["all"]["IL_MCC"]):
            logger.warning(
                "%s has no pair of an image and a name that is known to be there, or none that is "
                "known not to be: IL_MCC and cgF1_50 are nan.",
                self._dataset,
            )
        worst = sorted(of_names, key=of_names.get)[:_SHOWN]
        logger.info(
            "Names whose presence is told worst (IL_F1): %s",
            ", ".join(f"{name} {of_names[name]:.0f}" for name in worst) or "none",
        )
