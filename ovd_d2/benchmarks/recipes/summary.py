"""The few numbers that tell open-vocabulary models apart, out of Detectron2's results."""

from collections.abc import Mapping
from typing import Any

METRICS = ("AP", "AP_base", "AP_novel", "AP50_base", "AP50_novel")
# Detectron2's task name: the name people read
TASKS = {"bbox": "box", "segm": "segm"}
GROUNDING = ("R@1",)  # of models that read captions: phrases whose best box is right
CLASS_AGNOSTIC = ("AP50", "R50")  # of boxes whatever their classes
SEGMENTATION = ("mIoU", "mIoU_base", "mIoU_novel")  # of label maps


def summarise(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Picks the summary of one data set's results.

    Args:
        results: {task: {metric: value in percent}}, as evaluators return it.

    Returns:
        {"box": {metric: value}, "segm": ...} with every one of :data:`METRICS`, "grounding" with
        :data:`GROUNDING`, "sem_seg" with :data:`SEGMENTATION`, "class_agnostic" with
        :data:`CLASS_AGNOSTIC`; None where a metric is missing or not a number. Only the tasks that
        were evaluated are there.
    """
    asked = [(task, name, METRICS) for task, name in TASKS.items()]
    asked += [("phrase_grounding", "grounding", GROUNDING), ("sem_seg", "sem_seg", SEGMENTATION)]
    asked += [("class_agnostic", "class_agnostic", CLASS_AGNOSTIC)]
    return {
        name: {metric: _number(results[task].get(metric)) for metric in metrics}
        for task, name, metrics in asked
        if task in results
    }


def _number(value: Any) -> float | None:
    """``value`` as a float; None for what is missing, nan or not a number."""
    if value is None or isinstance(value, str | bool):
        return None
    value = float(value)
    return value if value == value else None
