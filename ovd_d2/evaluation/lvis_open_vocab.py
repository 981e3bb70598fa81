"""LVIS evaluation with base and novel classes apart."""

import copy
import itertools
import json
import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import LVISEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from ovd_d2.data.datasets.annotation_check import TRUTH
from ovd_d2.data.datasets.annotation_files import explain_errors, read_annotations
from ovd_d2.data.datasets.lvis import minival
from ovd_d2.errors import OVDError
from ovd_d2.evaluation.lvis_backends import (
    FIXED_AP_DETS_PER_CATEGORY,
    BestOfEachCategory,
    PrecisionRecall,
    average_precision,
    check_backend,
    evaluate_lvis,
    has_ground_truth,
    limit_per_image,
)
from ovd_d2.evaluation.splits import check_predicted_classes, novel_mask, results_table

logger = logging.getLogger(__name__)

FREQUENCIES = ("r", "c", "f")  # in < 10, < 100, >= 100 training images


class LVISOpenVocabEvaluator(LVISEvaluator):
    """Detectron2's ``LVISEvaluator``, plus base and novel classes, plus fixed AP.

    ``evaluate()`` returns ``{"bbox": metrics}``, and ``"segm": metrics`` if the model predicts
    masks. All metrics are percentages in [0, 100]:

    * AP, AP50, AP75, APs, APm, APl, APr, APc, APf: as Detectron2's evaluator computes them;
    * AP_base, AP_novel, AP50_base, AP50_novel: means over the classes that the data set's metadata
      marks by ``is_novel``; without that mark, over rare classes and the others (the split of
      ViLD);
    * APfixed, APfixed_r, APfixed_c, APfixed_f, APfixed_base, APfixed_novel with ``fixed_ap``: the
      10,000 best detections of each class count, however many there are in an image (Dave et al.
      2021). It needs a model that gives more than the usual 300 detections per image
      (``TEST.DETECTIONS_PER_IMAGE``). Every process holds no more than those, and joins them in
      the order of ranks; of equal scores the first counts.

    A metric over classes of which none has ground truth is nan (where lvis-api says -1); all
    metrics are nan if the model predicted nothing at all, as in Detectron2.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        backend: str = "hotcoco",
        max_dets_per_image: int = 300,
        fixed_ap: bool = False,
        fixed_ap_dets_per_category: int = FIXED_AP_DETS_PER_CATEGORY,
        is_novel: Sequence[bool] | None = None,
    ) -> None:
        """Reads the data set's annotations.

        Args:
            dataset_name: a registered data set whose metadata has ``json_file``, an LVIS json; of
                its images only those of minival count if it also has ``only_minival``.
            tasks: of "bbox" and "segm"; None for what the predictions contain.
            distributed: gather the predictions of all processes on the main one.
            output_dir: folder for the predictions; None to write nothing.
            backend: "hotcoco" or "lvis-api"; equal results.
            max_dets_per_image: detections of an image that count, best first; -1 for all. Fixed AP
                ignores it.
            fixed_ap: report fixed AP too. Then only detections that count for one of the two are
                held and written; with ``max_dets_per_image`` -1 that is all of them.
            fixed_ap_dets_per_category: detections of a class that count for fixed AP.
            is_novel: (K,) instead of the metadata's; None to take those.

        Raises:
            OVDError: the annotation file is missing or broken, or the back end unknown or missing.
        """
        metadata = MetadataCatalog.get(dataset_name)
        json_file = metadata.get("json_file")
        if json_file is None:
            raise OVDError(
                f"Data set '{dataset_name}' is not registered with an annotation file (json_file), "
                "which the LVIS evaluator needs."
            )
        check_backend(backend)
        read_annotations(json_file, metadata.get("readme_section"), TRUTH, needs_annotations=False)
        with explain_errors(json_file, metadata.get("readme_section")):
            super().__init__(
                dataset_name,
                tasks,
                distributed,
                output_dir,
                max_dets_per_image=max_dets_per_image,
            )
            if metadata.get("only_minival"):
                self._lvis_api.dataset = minival(self._lvis_api.dataset, json_file)
        self._backend = backend
        self._fixed_ap = fixed_ap
        self._fixed_ap_cap = fixed_ap_dets_per_category
        self._marked = is_novel
        self._categories = _checked_categories(self._lvis_api.dataset, json_file)
        self._to_dataset_id = _dataset_ids(metadata, self._categories)
        self._groups = self._class_groups()

    @property
    def num_images(self) -> int:
        """Images of the data set."""
        return len(self._lvis_api.dataset["images"])

    @property
    def num_classes(self) -> int:
        """K, classes of the data set."""
        return len(self._categories)

    def reset(self) -> None:
        """Forgets all predictions."""
        super().reset()
        self._best = BestOfEachCategory(self._fixed_ap_cap)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Takes a batch of predictions, see Detectron2's ``LVISEvaluator.process``.

        Raises:
            OVDError: a predicted class is not one of the data set's.
        """
        for output in outputs:
            if "instances" in output and len(output["instances"]) > 0:
                largest = int(output["instances"].pred_classes.max())
                check_predicted_classes(largest, len(self._to_dataset_id), self._metadata.name)
        before = len(self._predictions)
        super().process(inputs, outputs)
        if self._fixed_ap:
            for prediction in self._predictions[before:]:
                if "instances" in prediction:
                    results = prediction["instances"]
                    self._best.add(results)
                    prediction["instances"] = limit_per_image(results, self._max_dets_per_image)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """The metrics of each task on the main process; None on the others."""
        if self._fixed_ap and self._distributed:
            gathered = comm.gather(self._best.results(), dst=0)
            self._best = BestOfEachCategory(self._fixed_ap_cap)
            for results in gathered:  # in the order of ranks; empty but on the main process
                self._best.add(results)
        return super().evaluate()

    def _class_groups(self) -> dict[str, np.ndarray]:
        """Split name to (K,) bool over the categories in the order of their ids."""
        frequency = np.array([c.get("frequency", "") for c in self._categories])
        groups = {name: frequency == name for name in FREQUENCIES}
        is_novel = novel_mask(self._metadata, len(self._categories), self._marked)
        if is_novel is None:
            logger.info(
                "Data set '%s' does not mark novel classes (metadata.is_novel): the rare ones "
                "are taken as novel.",
                self._metadata.name,
            )
            groups["novel"] = groups["r"]
        else:  # from the model's order of classes to the order of ids
            index = {dataset_id: i for i, dataset_id in enumerate(self._to_dataset_id)}
            groups["novel"] = is_novel[[index[c["id"]] for c in self._categories]]
        groups["base"] = ~groups["novel"]
        return groups

    def _eval_predictions(self, predictions: list[dict[str, Any]]) -> None:
        """Fills ``self._results``; called by ``evaluate`` on the main process."""
        results = self._with_dataset_ids(itertools.chain(*[p["instances"] for p in predictions]))
        tasks = self._tasks or self._tasks_from_predictions(results)
        self._save(results, "lvis_instances_results.json")
        best = None
        if self._fixed_ap:
            best = self._with_dataset_ids(self._best.results())
            self._save(best, "lvis_instances_results_fixed_ap.json")
        if not self._do_evaluation:
            logger.info("Annotations are not available for evaluation.")
            return
        if not results:
            logger.warning("The model predicted nothing: every metric is nan.")
        for task in sorted(tasks):
            self._results[task] = self._evaluate_task(results, best, task)

    def _with_dataset_ids(self, results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Copies, with category ids in place of class numbers."""
        return [{**r, "category_id": self._to_dataset_id[r["category_id"]]} for r in results]

    def _save(self, results: list[dict[str, Any]], name: str) -> None:
        if self._output_dir:
            path = os.path.join(self._output_dir, name)
            logger.info("Saving results to %s", path)
            with PathManager.open(path, "w") as f:
                json.dump(results, f)

    def _evaluate_task(
        self, results: list[dict[str, Any]], best: list[dict[str, Any]] | None, task: str
    ) -> dict[str, float]:
        logger.info(
            "Evaluating %d %s predictions (%s, at most %d per image) ...",
            *(len(results), task, self._backend, self._max_dets_per_image),
        )
        truth, options = self._lvis_api.dataset, {"backend": self._backend}
        standard = evaluate_lvis(
            truth, results, task, max_dets_per_image=self._max_dets_per_image, **options
        )
        metrics = self._standard_metrics(standard)
        if best is not None:
            fixed = evaluate_lvis(truth, best, task, max_dets_per_image=-1, **options)
            metrics["APfixed"] = average_precision(fixed)
            for name, classes in self._groups.items():
                metrics[f"APfixed_{name}"] = average_precision(fixed, classes)
        if not results:
            metrics = dict.fromkeys(metrics, float("nan"))
        self._log_table(task, metrics, has_ground_truth(standard))
        return metrics

    def _standard_metrics(self, evaluation: PrecisionRecall) -> dict[str, float]:
        metrics = {
            "AP": average_precision(evaluation),
            "AP50": average_precision(evaluation, iou=0.5),
            "AP75": average_precision(evaluation, iou=0.75),
        }
        for area in ("small", "medium", "large"):
            metrics[f"AP{area[0]}"] = average_precision(evaluation, area=area)
        for name in FREQUENCIES:
            metrics[f"AP{name}"] = average_precision(evaluation, self._groups[name])
        for prefix, iou in (("AP", None), ("AP50", 0.5)):
            for name in ("base", "novel"):
                metrics[f"{prefix}_{name}"] = average_precision(
                    evaluation, self._groups[name], iou=iou
                )
        return metrics

    def _log_table(self, task: str, metrics: dict[str, float], counted: np.ndarray) -> None:
        rows: dict[str, dict[str, Any]] = {
            "all": {k: metrics[k] for k in ("AP", "AP50", "AP75", "APs", "APm", "APl")},
            "base": {"AP": metrics["AP_base"], "AP50": metrics["AP50_base"]},
            "novel": {"AP": metrics["AP_novel"], "AP50": metrics["AP50_novel"]},
            "rare": {"AP": metrics["APr"]},
            "common": {"AP": metrics["APc"]},
            "frequent": {"AP": metrics["APf"]},
        }
        groups = {"all": np.ones_like(counted), **self._groups}
        short = {"rare": "r", "common": "c", "frequent": "f"}
        for name, row in rows.items():
            key = short.get(name, name)
            row["with ground truth"] = int(counted[groups[key]].sum())
            suffix = "" if key == "all" else f"_{key}"
            row["APfixed"] = metrics.get(f"APfixed{suffix}")
        columns = ["with ground truth", "AP", "AP50", "AP75", "APs", "APm", "APl"]
        columns += ["APfixed"] if self._fixed_ap else []
        logger.info(
            "Results for %s on %s:\n%s", task, self._metadata.name, results_table(rows, columns)
        )
        if not rows["novel"]["with ground truth"]:
            logger.info("No novel class has ground truth: AP_novel and AP50_novel are nan.")


def _checked_categories(dataset: dict[str, Any], json_file: str) -> list[dict[str, Any]]:
    """The categories in the order of their ids; raises an OVDError for an unusable json."""
    if not dataset["categories"]:
        raise OVDError(
            f"{json_file} has an empty list of categories: there is nothing to evaluate."
        )
    if not dataset["images"]:
        raise OVDError(f"{json_file} has an empty list of images: there is nothing to evaluate.")
    for image in dataset["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            if key not in image:
                raise OVDError(
                    f"{json_file} is not in LVIS format: image {image['id']} lacks '{key}' (an "
                    "empty list if there are none)."
                )
    return sorted(copy.copy(dataset["categories"]), key=lambda c: c["id"])


def _dataset_ids(metadata: Any, categories: list[dict[str, Any]]) -> list[int]:
    """The dataset id of every class index, by Detectron2's rule for LVIS data sets."""
    mapping = metadata.get("thing_dataset_id_to_contiguous_id")
    if mapping is None:
        ids = list(range(1, len(categories) + 1))
    else:
        ids = sorted(mapping, key=mapping.get)
    if sorted(ids) != [c["id"] for c in categories]:
        raise OVDError(
            f"The annotation file of data set '{metadata.name}' has {len(categories)} categories "
            f"with ids {categories[0]['id']} to {categories[-1]['id']}, which its metadata does "
            "not match: number them from 1 without gaps, or set thing_dataset_id_to_contiguous_id."
        )
    return ids
