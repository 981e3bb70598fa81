"""Precision and recall of LVIS detections, from either of two interchangeable back ends.

Shapes: T IoU thresholds (0.50:0.05:0.95), R recall thresholds (0:0.01:1), K categories in the
order of their ids, A area ranges (all, small, medium, large).

* ``"hotcoco"`` (PyPI ``hotcoco``, Rust): the default, 30-100 times faster.
* ``"lvis-api"`` (PyPI ``lvis``): the reference of Gupta et al. 2019, "LVIS: A Dataset for Large
  Vocabulary Instance Segmentation".
"""

import copy
import functools
import heapq
import importlib.util
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as mask_utils

from ovd_d2.errors import OVDError
from ovd_d2.evaluation.lvis_api import mend

AREA_RANGES = ("all", "small", "medium", "large")
FIXED_AP_DETS_PER_CATEGORY = 10_000  # Dave et al. 2021, section 4
_BEYOND_EVERY_AREA_RANGE = 1e12  # square pixels; the ranges end at 1e10


@dataclass(frozen=True)
class PrecisionRecall:
    """What an evaluation comes down to, before any averaging.

    Attributes:
        precision: (T, R, K, A) float64 in [0, 1]; -1 where a category has no ground truth to find
            in an area range.
        recall: (T, K, A) float64 in [0, 1]; -1 likewise.
        category_ids: the K dataset ids, ascending.
    """

    precision: np.ndarray
    recall: np.ndarray
    category_ids: tuple[int, ...]


def check_backend(backend: str) -> None:
    """Raises an ``OVDError`` if ``backend`` is no back end or is not installed."""
    if backend not in _BACKENDS:
        raise OVDError(f"TEST.LVIS_BACKEND is {backend!r}: use one of {', '.join(_BACKENDS)}.")
    package = _BACKENDS[backend].package
    if importlib.util.find_spec(package) is None:
        raise OVDError(
            f"TEST.LVIS_BACKEND {backend!r} is not installed: run `pip install {package}`, or use "
            f"another of {', '.join(_BACKENDS)}."
        )


def evaluate_lvis(
    ground_truth: Mapping[str, Any],
    results: list[dict[str, Any]],
    iou_type: str,
    *,
    max_dets_per_image: int = 300,
    backend: str = "hotcoco",
) -> PrecisionRecall:
    """Matches detections to ground truth by LVIS's federated rules.

    A detection counts in an image only if its category is annotated there or listed in
    ``neg_category_ids``; an unmatched one is ignored if the category is in
    ``not_exhaustive_category_ids``.

    Args:
        ground_truth: the content of an LVIS json. Not changed.
        results: dicts with ``image_id``, ``category_id`` (dataset ids), ``score`` and ``bbox``
            (x, y, width, height in pixels) or ``segmentation`` (compressed RLE); both for
            ``iou_type`` "segm", where areas are those of the masks. May be empty. Not changed.
        iou_type: "bbox" or "segm".
        max_dets_per_image: the highest-scoring detections of an image that count, over all
            categories; -1 for no limit.
        backend: "hotcoco" or "lvis-api".

    Raises:
        OVDError: unknown or missing back end; a detection without box or mask, or in an image or of
            a category that the ground truth lacks.
    """
    check_backend(backend)
    box_or_mask = "bbox" if iou_type == "bbox" else "segmentation"
    category_ids = tuple(sorted(c["id"] for c in ground_truth["categories"]))
    _check_results(results, box_or_mask, {i["id"] for i in ground_truth["images"]}, category_ids)
    fields = ("image_id", "category_id", "score", box_or_mask)
    results = [{"id": n, **{f: r[f] for f in fields}} for n, r in enumerate(results, start=1)]
    precision, recall = _BACKENDS[backend].run(ground_truth, results, iou_type, max_dets_per_image)
    return PrecisionRecall(precision, recall, category_ids)


def _check_results(
    results: list[dict[str, Any]], field: str, image_ids: set[int], category_ids: tuple[int, ...]
) -> None:
    for name, known in (("image_id", image_ids), ("category_id", set(category_ids))):
        unknown = {r[name] for r in results} - known
        if unknown:
            raise OVDError(
                f"The ground truth lacks {len(unknown)} values of {name} that were predicted (such "
                f"as {min(unknown)}): predict and evaluate on the same data set."
            )
    if any(field not in r for r in results):
        raise OVDError(f"A prediction has no '{field}': the model does not solve this task.")


class BestOfEachCategory:
    """The ``limit`` highest-scoring results of each category over a whole data set.

    Results come one image after the other and no more than ``limit`` of a category are ever held.
    Of equal scores the one that came first stays. With ``max_dets_per_image=-1`` this is the rule
    of "fixed AP" (Dave et al. 2021, "Evaluating Large-Vocabulary Object Detectors: The Devil is in
    the Details"), which stops categories from competing for places in an image. It looks at scores
    alone: results that LVIS will not count (no area, a category not searched for) take places too.
    """

    def __init__(self, limit: int) -> None:
        """Args:
        limit: results of a category that are kept, at least 1.
        """
        self._limit = limit
        self._seen = 0
        # category id -> heap of (score, -place in the stream, result), the next to go in front
        self._heaps: dict[Any, list[tuple[float, int, dict[str, Any]]]] = defaultdict(list)

    def add(self, results: Iterable[dict[str, Any]]) -> None:
        """Takes more results, dicts with ``category_id`` and ``score``."""
        for result in results:
            heap = self._heaps[result["category_id"]]
            entry = (result["score"], -self._seen, result)
            self._seen += 1
            if len(heap) < self._limit:
                heapq.heappush(heap, entry)
            elif entry > heap[0]:
                heapq.heapreplace(heap, entry)

    def results(self) -> list[dict[str, Any]]:
        """What is kept, category after category, each in descending order of scores."""
        return [
            result
            for heap in self._heaps.values()
            for _, _, result in sorted(heap, key=lambda entry: entry[:2], reverse=True)
        ]


def average_precision(
    evaluation: PrecisionRecall,
    categories: np.ndarray | None = None,
    *,
    iou: float | None = None,
    area: str = "all",
) -> float:
    """Mean precision over recall thresholds, IoU thresholds and categories, in percent.

    Args:
        evaluation: of K categories.
        categories: (K,) bool, the categories to average over; None for all of them.
        iou: one IoU threshold, such as 0.5; None averages over all ten.
        area: one of ``AREA_RANGES``.

    Returns:
        In [0, 100]; nan if no chosen category has ground truth.
    """
    if categories is None:
        categories = np.ones(len(evaluation.category_ids), dtype=bool)
    chosen = evaluation.precision[:, :, np.flatnonzero(categories), AREA_RANGES.index(area)]
    if iou is not None:
        chosen = chosen[[round((iou - 0.5) / 0.05)]]
    chosen = chosen[chosen > -1]
    return float(np.mean(chosen) * 100) if chosen.size else math.nan


def has_ground_truth(evaluation: PrecisionRecall) -> np.ndarray:
    """(K,) bool: categories that count in the averages."""
    return evaluation.precision[0, 0, :, 0] > -1


def _evaluate_hotcoco(
    ground_truth: Mapping[str, Any], results: list[dict], iou_type: str, max_dets: int
) -> tuple[np.ndarray, np.ndarray]:
    import hotcoco

    truth = hotcoco.COCO(_as_lvis_api_reads(ground_truth, iou_type))
    results = _with_area(limit_per_image(results, max_dets), iou_type)
    found = hotcoco.LVISResults(truth, results, max_dets=-1)
    evaluation = hotcoco.LVISEval(truth, found, iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    arrays = evaluation.eval
    return np.asarray(arrays["precision"])[..., -1], np.asarray(arrays["recall"])[..., -1]


def _as_lvis_api_reads(ground_truth: Mapping[str, Any], iou_type: str) -> dict[str, Any]:
    """Rewrites what hotcoco, following COCO, takes differently from lvis-api.

    lvis-api leaves out annotations without area, takes no notice of ``iscrowd``, and has an
    ``ignore`` flag; an area beyond every range has the same effect as that flag.
    """
    annotations = []
    for annotation in ground_truth["annotations"]:
        if annotation["area"] > 0:
            ignored = annotation.get("ignore", 0)
            area = _BEYOND_EVERY_AREA_RANGE if ignored else annotation["area"]
            annotation = {**annotation, "area": area, "iscrowd": 0, "ignore": 0}
            if iou_type == "bbox":  # most of the file, and not needed
                annotation.pop("segmentation", None)
            annotations.append(annotation)
    return {**ground_truth, "annotations": annotations}


def limit_per_image(results: list[dict], max_dets: int) -> list[dict]:
    """The ``max_dets`` highest-scoring results of each image, all for -1; equal scores keep their
    order."""
    if max_dets < 0:
        return results
    by_image = defaultdict(list)
    for result in results:
        by_image[result["image_id"]].append(result)
    return [
        result
        for members in by_image.values()
        for result in sorted(members, key=lambda r: r["score"], reverse=True)[:max_dets]
    ]


def _with_area(results: list[dict], iou_type: str) -> list[dict]:
    """Results that cover something; empty boxes and masks are no detections to lvis-api."""
    if iou_type == "bbox":
        return [r for r in results if r["bbox"][2] * r["bbox"][3] > 0]
    # One at a time: pycocotools 2.0.11 overflows on a list of more than 255 masks.
    return [r for r in results if mask_utils.area(r["segmentation"]) > 0]


def _evaluate_lvis_api(
    ground_truth: Mapping[str, Any], results: list[dict], iou_type: str, max_dets: int
) -> tuple[np.ndarray, np.ndarray]:
    dataset_class, results_class, evaluation_class = _lvis_api_classes()
    truth = dataset_class(copy.deepcopy(dict(ground_truth)))
    found = results_class(truth, copy.deepcopy(results), max_dets=max_dets)
    evaluation = evaluation_class(truth, found, iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


@functools.cache
def _lvis_api_classes() -> tuple[type, type, type]:
    """lvis-api's three classes, adapted to data in memory and empty results."""
    from lvis import LVIS, LVISEval, LVISResults

    mend()

    class Dataset(LVIS):
        def __init__(self, dataset: dict[str, Any]) -> None:
            self.logger = logging.getLogger("lvis")
            self.dataset = dataset
            self._create_index()

    class Results(LVISResults):
        def __init__(self, truth: LVIS, results: list[dict], max_dets: int) -> None:
            if results:
                super().__init__(truth, results, max_dets=max_dets)
            else:  # the parent looks at the first result
                self.logger = logging.getLogger("lvis")
                self.dataset = {**truth.dataset, "annotations": []}
                self._create_index()

    class Evaluation(LVISEval):
        def _prepare_freq_group(self) -> list[list[int]]:
            return []  # averages are taken by average_precision; files may lack frequencies

    return Dataset, Results, Evaluation


class _Backend(NamedTuple):
    package: str
    run: Callable[..., tuple[np.ndarray, np.ndarray]]


_BACKENDS = {
    "hotcoco": _Backend("hotcoco", _evaluate_hotcoco),
    "lvis-api": _Backend("lvis", _evaluate_lvis_api),
}
