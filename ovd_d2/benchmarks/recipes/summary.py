"""The few numbers that tell open-vocabulary models apart, out of Detectron2's results."""

from collections.abc import Mapping
from typing import Any

METRICS = ("AP", "AP_base", "AP_novel", "AP50_base", "AP50_novel")
# Detectron2's task name: the name people read
TASKS = {"bbox": "box", "segm": "segm"}
GROUNDING = ("R@1",)  # of models that read captions: phrases whose best box is right
CLASS_AGNOSTIC = ("AP50", "R50")  # of boxes whatever their classes
SEGMENTATION = ("mIoU", "mIoU_base", "mIoU_novel")  # of label maps
# The name people read: the task of the evaluators and its metrics, in the order of the columns.
REPORTED = {
    **{name: (task, METRICS) for task, name in TASKS.items()},
    "grounding": ("phrase_grounding", GROUNDING),
    "sem_seg": ("sem_seg", SEGMENTATION),
    "class_agnostic": ("class_agnostic", CLASS_AGNOSTIC),
}


def summarise(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Picks the summary of one data set's results.

    Args:
        results: {task: {metric: value in percent}}, as evaluators return it.

    Returns:
        {"box": {metric: value}, ...} by :data:`REPORTED`, None where a metric is missing or not a
        number. Only the tasks that were evaluated are there.
    """
    return {
        name: {metric: _number(results[task].get(metric)) for metric in metrics}
        for name, (task, metrics) in REPORTED.items()
        if task in results
    }


def _number(value: Any) -> float | None:
    """``value`` as a float; None for what is missing, nan or not a number."""
    if value is None or isinstance(value, str | bool):
        return None
    value = float(value)
    return value if value == value else None
