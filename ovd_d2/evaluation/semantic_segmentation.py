"""Semantic segmentation: mean IoU over all, base and novel classes.

Letters: K classes of the data set; H, W height and width of an image.
"""

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator

from ovd_d2.data.datasets.semantic import read_label_map
from ovd_d2.data.datasets.semantic.label_sets import BACKGROUND, IGNORE_LABEL
from ovd_d2.errors import OVDError
from ovd_d2.evaluation.splits import novel_mask, results_table

logger = logging.getLogger(__name__)

# What becomes of a class that no evaluated pixel has; see class_iou.
ABSENT = ("no_truth", "nan", "zero")


def class_iou(confusion: np.ndarray, absent: str = "no_truth") -> np.ndarray:
    """IoU of every class, summed over all images.

    Args:
        confusion: (K + 1, K + 1) counts of pixels by prediction (rows) and truth; the last are
            pixels to ignore, of which the truth is none of the K.
        absent: what classes that are not there get: "no_truth" nan where no pixel truly is of the
            class, even if it is predicted (Detectron2); "nan" nan where it is not predicted either
            (mmsegmentation, thus GroupViT); "zero" 0 (PyTorch-Encoding, thus LSeg).

    Returns:
        (K,) float64 in 0..1, or nan for classes that means leave out.
    """
    if absent not in ABSENT:
        raise OVDError(f"absent is {absent!r}; it must be {' or '.join(ABSENT)}.")
    counts = confusion[:-1, :-1].astype(np.float64)
    hits, truth = counts.diagonal(), counts.sum(axis=0)
    union = truth + counts.sum(axis=1) - hits
    iou = np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)
    if absent == "zero":
        return np.nan_to_num(iou)
    return np.where(truth > 0, iou, np.nan) if absent == "no_truth" else iou


class OpenVocabSemSegEvaluator(SemSegEvaluator):
    """Detectron2's evaluator for any label maps that records name, with base and novel classes.

    To Detectron2's results come ``mIoU_base`` and ``mIoU_novel`` in percent, and ``hIoU``, their
    harmonic mean, where classes are marked novel. A class named "background" counts in ``mIoU`` and
    is neither base nor novel.
    """

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        is_novel: Sequence[bool] | None = None,
        absent: str = "no_truth",
    ) -> None:
        """Loads the records of the data set.

        Args:
            dataset_name: a registered data set with ``stuff_classes``.
            distributed: add up the counts of all processes.
            output_dir: folder for predictions and results; None to write nothing.
            is_novel: (K,) flags instead of the metadata's; None to take those.
            absent: see :func:`class_iou`.

        Raises:
            OVDError: no ``stuff_classes``, or ``is_novel`` or ``absent`` does not fit.
        """
        records = DatasetCatalog.get(dataset_name)  # may name the classes
        metadata = MetadataCatalog.get(dataset_name)
        if not metadata.get("stuff_classes"):
            raise OVDError(
                f"Data set '{dataset_name}' has no stuff_classes in its metadata: set them to the "
                "names of its classes."
            )
        if metadata.get("ignore_label") is None:
            metadata.set(ignore_label=IGNORE_LABEL)
        super().__init__(dataset_name, distributed, output_dir)
        # The parent's means are others, and it logs the numbers of all classes in one line.
        self._logger = logging.getLogger(f"{__name__}.detectron2")
        self._logger.setLevel(logging.WARNING)
        # The parent's process() asks for the map of what it finds here.
        self.input_file_to_gt_file = {record["file_name"]: record for record in records}
        self.sem_seg_loading_fn = self._label_map
        self._absent = absent
        class_iou(np.zeros((2, 2)), absent)
        self._is_novel = novel_mask(metadata, self._num_classes, is_novel)

    def _label_map(self, record: dict[str, Any], dtype: type = int) -> np.ndarray:
        return read_label_map(record, self._num_classes, self._ignore_label).astype(dtype)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Takes a batch.

        Args:
            inputs: with ``file_name``, ``height`` and ``width``.
            outputs: with ``sem_seg`` (K, height, width), scores.

        Raises:
            OVDError: scores of other classes or of another size, or a bad label map.
        """
        for image, output in zip(inputs, outputs, strict=True):
            if "sem_seg" not in output:
                raise OVDError(
                    f"Data set '{self._dataset_name}' asks for label maps, which the model does "
                    "not give: leave it out of DATASETS.TEST, or take a model for segmentation."
                )
            check_score_maps(output["sem_seg"], self._num_classes, image, self._dataset_name)
        super().process(inputs, outputs)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """``{"sem_seg": {"mIoU": ..., "IoU-NAME": ..., ...}}`` in percent; None on processes other
        than the main one."""
        with np.errstate(invalid="ignore", divide="ignore"):  # of classes that are not there
            results = super().evaluate()
        if results is None:
            return None
        found = {key: float(value) for key, value in results["sem_seg"].items()}
        iou = 100 * class_iou(self._conf_matrix, self._absent)
        found["mIoU"] = _mean(iou)
        found.update({f"IoU-{name}": float(x) for name, x in zip(self._class_names, iou)})
        rows = {"all": {"classes": len(iou), "mIoU": found["mIoU"], "pACC": found["pACC"]}}
        if self._is_novel is not None:
            rows.update(self._of_splits(iou, found))
        logger.info(
            "Semantic segmentation on %s (classes that are not there: %s):\n%s",
            self._dataset_name,
            self._absent,
            results_table(rows, ["classes", "mIoU", "pACC"]),
        )
        if self._output_dir:  # the parent has written its own means
            torch.save(found, os.path.join(self._output_dir, "sem_seg_evaluation.pth"))
        return {"sem_seg": found}

    def _of_splits(self, iou: np.ndarray, found: dict[str, float]) -> dict[str, dict[str, Any]]:
        """Adds the means of base and novel classes to ``found``; their rows of the table."""
        counted = np.array([name != BACKGROUND for name in self._class_names])
        rows = {}
        for name, chosen in (("base", ~self._is_novel), ("novel", self._is_novel)):
            found[f"mIoU_{name}"] = _mean(iou[chosen & counted])
            rows[name] = {
                "classes": int((chosen & counted).sum()),
                "mIoU": found[f"mIoU_{name}"],
            }
        base, novel = found["mIoU_base"], found["mIoU_novel"]
        found["hIoU"] = 2 * base * novel / (base + novel) if base + novel > 0 else 0.0
        return rows


def check_score_maps(
    scores: torch.Tensor, num_classes: int, image: dict[str, Any], dataset_name: str
) -> None:
    """Raises an ``OVDError`` unless ``scores`` are (num_classes, height, width) of ``image``."""
    wanted = (num_classes, image["height"], image["width"])
    if tuple(scores.shape) != wanted:
        raise OVDError(
            f"The model gives scores of shape {tuple(scores.shape)} for {image['file_name']}, but "
            f"data set '{dataset_name}' wants {wanted}, (classes, height, width): give the model "
            f"its vocabulary (dataset:{dataset_name}), and scores in the frame of the image."
        )


def _mean(iou: np.ndarray) -> float:
    """Over the classes that are not nan; nan if there are none."""
    there = iou[~np.isnan(iou)]
    return float(there.mean()) if len(there) else float("nan")
