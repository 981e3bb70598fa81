"""Evaluating a model that knows more classes than the data set."""

from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator


class DataSetClassesOnly(DatasetEvaluator):
    """Passes on what was predicted of the data set's K classes, those of index 0 to K - 1.

    Further classes (``TEST.DISTRACTORS``) have taken part in the competition for scores and for the
    places among an image's detections; their detections are neither right nor wrong.
    """

    def __init__(self, evaluator: DatasetEvaluator, dataset_name: str) -> None:
        """
        Args:
            evaluator: of ``dataset_name``.
            dataset_name: its metadata tells K, once the data set is loaded.
        """
        self.evaluator = evaluator
        self.dataset_name = dataset_name

    def reset(self) -> None:
        self.evaluator.reset()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Takes a batch of detections; ``outputs`` are left as they are."""
        num_classes = len(MetadataCatalog.get(self.dataset_name).thing_classes)
        kept = []
        for output in outputs:
            if "instances" in output:
                found = output["instances"]
                output = {**output, "instances": found[found.pred_classes < num_classes]}
            kept.append(output)
        self.evaluator.process(inputs, kept)

    def evaluate(self) -> dict[str, Any] | None:
        return self.evaluator.evaluate()
