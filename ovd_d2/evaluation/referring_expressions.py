"""Referring expressions: is the object that a whole sentence means among the best boxes?

Precision at k, over expressions: the share of those for which one of the k best boxes overlaps the
one target by at least 0.5. Two overlaps are in use, and published tables have both: plain IoU, and
generalised IoU (Rezatofighi et al. 2019), by which MDETR's and GLIP's public code counts. The
second is never larger, and neither is its precision.

Boxes are x0, y0, x1, y1 in pixels of the original image.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou

from ovd_d2.errors import OVDError
from ovd_d2.evaluation.phrase_grounding import NEVER
from ovd_d2.evaluation.splits import of_all_processes, results_table

logger = logging.getLogger(__name__)

RANKS = (1, 5, 10)
OVERLAPS = {"iou": box_iou, "giou": generalized_box_iou}


@dataclass(frozen=True)
class ExpressionTarget:
    """What one expression means.

    Attributes:
        box: (4,).
        dataset: "refcoco", "refcoco+" or "refcocog"; any name by which results are told apart.
    """

    box: Sequence[float]
    dataset: str = ""


def expression_targets(records: Iterable[Mapping[str, Any]]) -> dict[Any, ExpressionTarget]:
    """The targets of a data set's records.

    Args:
        records: dicts with ``image_id``, which is the expression's own, ``phrases``, one dict with
            one box in ``boxes``, and, if there is any, ``dataset_name``.

    Raises:
        OVDError: an expression has not one phrase with one box, or an id is there twice.
    """
    targets: dict[Any, ExpressionTarget] = {}
    for record in records:
        image_id, phrases = record["image_id"], record["phrases"]
        if image_id in targets:
            raise OVDError(f"Two expressions have the image_id {image_id!r}: number them.")
        if len(phrases) != 1 or len(phrases[0]["boxes"]) != 1:
            raise OVDError(
                f"The expression with image_id {image_id!r} has not one phrase with one box: for "
                "several, evaluate phrase grounding (evaluator_type 'phrase_grounding')."
            )
        targets[image_id] = ExpressionTarget(phrases[0]["boxes"][0], record.get("dataset_name", ""))
    return targets


def best_first(boxes: Tensor, scores: Tensor) -> Tensor:
    """(D, 4) float64: ``boxes`` in descending order of score; of equal scores that of the larger
    x0 comes first, then of the larger y0, x1, y1, as in MDETR's code.

    Args:
        boxes: (D, 4).
        scores: (D,).
    """
    corners = boxes.double().cpu().numpy()
    order = np.lexsort([*corners.T[::-1], scores.double().cpu().numpy()])[::-1]
    return torch.from_numpy(corners[order])


def first_right_box(
    boxes: Tensor, target: Sequence[float], *, overlap: str = "iou", min_overlap: float = 0.5
) -> int:
    """The place, from 0, of the first right box of an expression; ``NEVER`` if none is.

    Args:
        boxes: (D, 4), best first.
        target: (4,).
        overlap: "iou" or "giou".
        min_overlap: from which on a box is right.
    """
    wanted = torch.as_tensor(target, dtype=torch.float64)[None]
    right = (OVERLAPS[overlap](boxes.double(), wanted)[:, 0] >= min_overlap).nonzero()
    return int(right[0]) if len(right) else NEVER


def precision_of_expressions(
    first_right: Mapping[Any, int],
    targets: Mapping[Any, ExpressionTarget],
    ranks: Sequence[int] = RANKS,
) -> dict[str, dict[str, float]]:
    """Precision at each rank, for each data set.

    Args:
        first_right: image_id -> see :func:`first_right_box`.
        targets: image_id -> what its expression means.
        ranks: the numbers of boxes that count.

    Returns:
        Data set -> {"P@1", "P@5", "P@10"}, in [0, 1].

    Raises:
        OVDError: an expression has no prediction.
    """
    missing = [image_id for image_id in targets if image_id not in first_right]
    if missing:
        raise OVDError(
            f"{len(missing)} of {len(targets)} expressions have no prediction, such as that with "
            f"image_id {missing[0]!r}: predict all of the data set."
        )
    places: dict[str, list[int]] = {}
    for image_id, target in targets.items():
        places.setdefault(target.dataset, []).append(first_right[image_id])
    return {
        dataset: {f"P@{rank}": float(np.mean(np.asarray(of_one) < rank)) for rank in ranks}
        for dataset, of_one in sorted(places.items())
    }


class ReferringExpressionEvaluator(DatasetEvaluator):
    """Precision at 1, 5 and 10 boxes of referring expressions, as on RefCOCO, RefCOCO+, RefCOCOg.

    An input is a dict with ``image_id``, the id of its expression; an output one with
    ``instances``: ``pred_boxes`` in pixels of the original image and ``scores``. The whole sentence
    is one expression, so all detections count, whatever their ``pred_classes``.

    ``evaluate()`` returns ``{"refexp": {"P@1", "P@5", "P@10"}}``, percentages in [0, 100]; with
    several data sets their names are appended ("P@1_refcoco+") and there is no mean over them.
    """

    def __init__(
        self,
        targets: Mapping[Any, ExpressionTarget],
        *,
        overlap: str = "iou",
        distributed: bool = True,
    ) -> None:
        """Keeps the targets.

        Args:
            targets: image_id -> what its expression means, see :func:`expression_targets`.
            overlap: "iou", or "giou" to count as MDETR's and GLIP's code does.
            distributed: gather the results of all processes on the main one.

        Raises:
            OVDError: there are no targets, or the overlap is unknown.
        """
        if not targets:
            raise OVDError("targets is empty: there is no expression to evaluate.")
        if overlap not in OVERLAPS:
            raise OVDError(f"overlap is {overlap!r}: use one of {', '.join(OVERLAPS)}.")
        self._targets, self._overlap, self._distributed = targets, overlap, distributed
        self.reset()

    def reset(self) -> None:
        """Forgets all predictions."""
        self._found: dict[Any, int] = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Compares a batch of predictions with the targets; of two for an expression the first
        counts.

        Raises:
            OVDError: an expression is not among the targets.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            image_id, found = sample["image_id"], output["instances"]
            if image_id not in self._targets:
                raise OVDError(
                    f"The expression with image_id {image_id!r} is not among the targets of the "
                    "evaluator: predict and evaluate on the same data set."
                )
            if image_id not in self._found:
                boxes = best_first(found.pred_boxes.tensor, found.scores)
                target = self._targets[image_id].box
                self._found[image_id] = first_right_box(boxes, target, overlap=self._overlap)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """The metrics on the main process; {} on the others.

        Raises:
            OVDError: an expression was not predicted.
        """
        gathered = of_all_processes(self._found, self._distributed)
        if gathered is None:
            return {}
        found: dict[Any, int] = {}
        for of_process in gathered:
            found = {**of_process, **found}
        rows = {
            dataset: {name: 100 * value for name, value in precision.items()}
            for dataset, precision in precision_of_expressions(found, self._targets).items()
        }
        columns = [f"P@{rank}" for rank in RANKS]
        table = results_table(rows, columns, of="data set")
        logger.info("Referring expressions (%s of at least 0.5):\n%s", self._overlap, table)
        return {
            "refexp": {
                name if len(rows) == 1 else f"{name}_{dataset}": value
                for dataset, precision in rows.items()
                for name, value in precision.items()
            }
        }
