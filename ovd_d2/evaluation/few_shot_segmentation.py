"""Few-shot segmentation: mean IoU of a fold's classes, and of background and foreground.

Letters: K classes of the split, the first of which is "others".
"""

import logging
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from torch.nn.functional import interpolate

from ovd_d2.data.datasets.semantic import read_label_map
from ovd_d2.errors import OVDError
from ovd_d2.evaluation.splits import of_all_processes, results_table

logger = logging.getLogger(__name__)


class FewShotSegmentationEvaluator(DatasetEvaluator):
    """The metric of HSNet (Min et al. 2021), which LSeg reports.

    A pixel is of an image's one class where the score of that class is above the score of
    "others". Intersections and unions are summed by class over all images. ``mIoU`` is the mean
    over all classes of the split of the foreground's IoU, where a class without images counts 0;
    ``FB-IoU`` that of the IoU of all background and of all foreground. In percent.
    """

    def __init__(self, dataset_name: str, distributed: bool = True) -> None:
        """Loads the records.

        Args:
            dataset_name: a registered data set of
                :mod:`~ovd_d2.data.datasets.semantic.few_shot`.
            distributed: add up the counts of all processes.
        """
        self._records = {r["image_id"]: r for r in DatasetCatalog.get(dataset_name)}
        metadata = MetadataCatalog.get(dataset_name)
        self._names = metadata.stuff_classes
        self._ignore_label = metadata.ignore_label
        self._dataset_name = dataset_name
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        # Intersections and unions (K, background and foreground), in pixels.
        self._counts = np.zeros((2, len(self._names), 2), np.int64)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Takes a batch.

        Args:
            inputs: with ``image_id``.
            outputs: with ``sem_seg``, scores (K, H, W) of all classes, or (2, H, W) of the image's
                ``class_names``. The label map is brought to H and W by its nearest
                pixels.

        Raises:
            OVDError: scores of another number of classes, or a bad label map.
        """
        for image, output in zip(inputs, outputs, strict=True):
            record = self._records[image["image_id"]]
            number = record["few_shot_class"]
            scores = self._two_scores(output, number)
            truth = read_label_map(record, len(record["class_names"]), self._ignore_label)
            truth = _nearest(truth, tuple(scores.shape[1:]))
            valid = truth != self._ignore_label
            found = (scores[1] > scores[0]).cpu().numpy()[valid]
            wanted = (truth == 1)[valid]
            for side, (a, b) in enumerate(((~found, ~wanted), (found, wanted))):
                self._counts[:, number, side] += ((a & b).sum(), (a | b).sum())

    def _two_scores(self, output: dict[str, Any], number: int) -> torch.Tensor:
        """(2, H, W): of "others", and of the class."""
        scores = output.get("sem_seg")
        count = 0 if scores is None else len(scores)
        if count not in (2, len(self._names)):
            raise OVDError(
                f"The model gives scores of {count} classes for an image of '{self._dataset_name}'"
                f", which has {len(self._names)}: give a model for segmentation its vocabulary "
                f"(dataset:{self._dataset_name})."
            )
        return scores if count == 2 else scores[[0, number]]

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """``{"sem_seg": {"mIoU", "FB-IoU", "IoU-NAME", ...}}``; None on other processes."""
        gathered = of_all_processes(self._counts, self._distributed)
        if gathered is None:
            return None
        intersections, unions = sum(gathered)[:, 1:]  # nobody looks for "others"
        iou = 100 * intersections[:, 1] / np.maximum(unions[:, 1], 1)
        sides = 100 * intersections.sum(axis=0) / np.maximum(unions.sum(axis=0), 1)
        found = {"mIoU": float(iou.mean()), "FB-IoU": float(sides.mean())}
        logger.info(
            "Few-shot segmentation on %s:\n%s",
            self._dataset_name,
            results_table({"all": {"classes": len(iou), **found}}, ["classes", *found]),
        )
        found.update({f"IoU-{name}": float(x) for name, x in zip(self._names[1:], iou)})
        return {"sem_seg": found}


def _nearest(labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) labels of the nearest pixels, by the rule of the protocol's public code."""
    if labels.shape == shape:
        return labels
    pixels = torch.from_numpy(labels)[None, None].float()
    return interpolate(pixels, shape, mode="nearest")[0, 0].long().numpy()
