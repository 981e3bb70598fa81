"""COCO evaluation with 48 base and 17 novel classes, in the generalised setting."""

import contextlib
import io
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.evaluation import COCOEvaluator
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ovd_d2.data.datasets.annotation_check import TRUTH
from ovd_d2.data.datasets.annotation_files import explain_errors, read_annotations
from ovd_d2.data.datasets.coco_ovd import read_coco_json
from ovd_d2.errors import OVDError
from ovd_d2.evaluation.splits import check_predicted_classes, novel_mask, results_table

logger = logging.getLogger(__name__)

_COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class CheckedCOCOEvaluator(COCOEvaluator):
    """Detectron2's ``COCOEvaluator`` on annotations that have been checked.

    What own annotation files often lack and pycocotools needs is filled in: ``iscrowd`` 0, ``area``
    (that of the box), and other ids where one is 0, which pycocotools would count as not found.
    Masks are evaluated only if every object has one.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Reads the data set's annotations.

        Args:
            dataset_name: a registered data set, see ``COCOEvaluator``.
            tasks: of "bbox", "segm" and "keypoints"; None for what the predictions contain.
            distributed: gather the predictions of all processes on the main one.
            output_dir: folder for the predictions; None to write nothing.
            kwargs: of ``COCOEvaluator``.

        Raises:
            OVDError: the annotation file is missing, broken, or has wrong entries.
        """
        metadata = MetadataCatalog.get(dataset_name)
        json_file, section = metadata.get("json_file"), metadata.get("readme_section")
        content = None if json_file is None else self._read(metadata)
        with explain_errors(json_file or dataset_name, section):
            super().__init__(dataset_name, tasks, distributed, output_dir, **kwargs)
            if content is not None and self._do_evaluation:
                with contextlib.redirect_stdout(io.StringIO()):
                    self._coco_api = _coco_from_memory(_completed(content))

    def _read(self, metadata: Metadata) -> dict[str, Any]:
        """The content of the annotation file, as far as it counts."""
        section = metadata.get("readme_section")
        return read_annotations(metadata.json_file, section, TRUTH, needs_annotations=False)

    def _tasks_from_predictions(self, predictions: list[dict[str, Any]]) -> set[str]:
        """As the parent's, without "segm" where objects have no masks."""
        tasks = set(super()._tasks_from_predictions(predictions))
        annotations = self._coco_api.dataset.get("annotations", ())
        if "segm" in tasks and not all(a.get("segmentation") for a in annotations):
            logger.warning(
                "%s has objects without a mask: masks are not evaluated.", self._metadata.json_file
            )
            tasks.remove("segm")
        return tasks


class COCOOpenVocabEvaluator(CheckedCOCOEvaluator):
    """Detectron2's ``COCOEvaluator`` on the base and novel classes, reported apart.

    Base and novel names compete ("generalised" setting): only the categories in the data set's
    ``thing_dataset_id_to_contiguous_id`` count, and only images that hold at least one of them.
    Where its metadata has ``is_scored``, (K,) bools, the other classes compete and do not count.

    ``evaluate()`` returns ``{"bbox": metrics}`` (and "segm" if the model predicts masks) with
    Detectron2's metrics (AP, AP50, AP75, APs, APm, APl, AP-<class>) and AP_base, AP_novel,
    AP50_base, AP50_novel; all percentages in [0, 100]. AP50_base, AP50_novel and AP50 are the
    published ones. A metric over classes without ground truth is nan, and so is every metric if
    the model predicted nothing, as in Detectron2. pycocotools does the counting.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        is_novel: Sequence[bool] | None = None,
        kpt_oks_sigmas: Sequence[float] = (),
    ) -> None:
        """Reads the data set's annotations.

        Args:
            dataset_name: a registered data set whose metadata has ``json_file`` (a COCO instances
                json), ``thing_dataset_id_to_contiguous_id`` and ``is_novel``.
            tasks: of "bbox", "segm" and "keypoints"; None for what the predictions contain.
            distributed: gather the predictions of all processes on the main one.
            output_dir: folder for the predictions; None to write nothing.
            is_novel: (K,) instead of the metadata's; None to take those.
            kpt_oks_sigmas: of ``COCOEvaluator``, with "keypoints".

        Raises:
            OVDError: metadata is incomplete, or the annotation file is missing or broken.
        """
        metadata = MetadataCatalog.get(dataset_name)
        for key in ("json_file", "thing_dataset_id_to_contiguous_id", "is_novel"):
            if metadata.get(key) is None and not (key == "is_novel" and is_novel):
                raise OVDError(
                    f"Data set '{dataset_name}' has no '{key}' in its metadata, which the COCO "
                    "open-vocabulary evaluator needs: use a registered COCO-OVD split, or name "
                    "the novel classes in DATASETS.NOVEL_NAMES."
                )
        ids = metadata.thing_dataset_id_to_contiguous_id
        self._is_scored = np.array(metadata.get("is_scored") or [True] * len(ids))
        if len(self._is_scored) != len(ids):
            raise OVDError(
                f"The metadata of data set '{dataset_name}' has {len(self._is_scored)} entries in "
                f"is_scored for {len(ids)} classes: they must agree."
            )
        self._is_novel = novel_mask(metadata, len(ids), is_novel)[self._is_scored]
        # Detectron2's compiled evaluator is not to be relied on: official code only.
        super().__init__(
            dataset_name,
            tasks,
            distributed,
            output_dir,
            use_fast_impl=False,
            kpt_oks_sigmas=kpt_oks_sigmas,
        )

    def _read(self, metadata: Metadata) -> dict[str, Any]:
        """Annotations of the data set's scored classes, and the images that have some."""
        ids = metadata.thing_dataset_id_to_contiguous_id
        scored_ids = {i: place for i, place in ids.items() if self._is_scored[place]}
        section = metadata.get("readme_section")
        content = read_coco_json(metadata.json_file, scored_ids, section, TRUTH)
        if not content["images"]:
            raise OVDError(
                f"{metadata.json_file} holds no image with annotations of the classes of "
                f"'{metadata.name}': there is nothing to evaluate."
            )
        return content

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Takes a batch of predictions, see Detectron2's ``COCOEvaluator.process``.

        Raises:
            OVDError: a predicted class is not one of the data set's.
        """
        for output in outputs:
            if "instances" in output and len(output["instances"]) > 0:
                largest = int(output["instances"].pred_classes.max())
                check_predicted_classes(largest, len(self._is_scored), self._metadata.name)
        super().process(inputs, outputs)

    def _derive_coco_results(
        self, coco_eval: COCOeval | None, iou_type: str, class_names: list[str] | None = None
    ) -> dict[str, float]:
        """Adds the base and novel means to the parent's results, all over the scored classes."""
        if class_names is not None:
            class_names = [n for n, scored in zip(class_names, self._is_scored) if scored]
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        splits = {"base": ~self._is_novel, "novel": self._is_novel}
        # (T, R, K) for all areas and the largest number of detections; K in the order of ids,
        # which is the order of the classes.
        precision = None if coco_eval is None else coco_eval.eval["precision"][:, :, :, 0, -1]
        for name, classes in splits.items():
            results[f"AP_{name}"] = _mean_precision(precision, classes)
            results[f"AP50_{name}"] = _mean_precision(precision, classes, iou_index=0)
        rows: dict[str, dict[str, Any]] = {
            "all": {k: v for k, v in results.items() if k in _COLUMNS},
            "base": {"AP": results["AP_base"], "AP50": results["AP50_base"]},
            "novel": {"AP": results["AP_novel"], "AP50": results["AP50_novel"]},
        }
        table = results_table(rows, list(rows["all"]))
        logger.info("Results for %s on %s:\n%s", iou_type, self._metadata.name, table)
        return results


def _completed(content: dict[str, Any]) -> dict[str, Any]:
    """``content`` with what pycocotools needs of every annotation, changed in place."""
    annotations = content["annotations"]
    renumber = any(annotation["id"] == 0 for annotation in annotations)
    for number, annotation in enumerate(annotations, start=1):
        annotation.setdefault("iscrowd", 0)
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
        if renumber:
            annotation["id"] = number
    return content


def _coco_from_memory(content: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


def _mean_precision(
    precision: np.ndarray | None, classes: np.ndarray, iou_index: int | None = None
) -> float:
    """Percent; nan without predictions or without ground truth of the ``classes`` (K,) bool."""
    if precision is None:
        return math.nan
    chosen = precision[:, :, classes] if iou_index is None else precision[iou_index][:, classes]
    chosen = chosen[chosen > -1]
    return float(np.mean(chosen) * 100) if chosen.size else math.nan
