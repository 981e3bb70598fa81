"""Boxes for labels by a detector of ours.

Letters: Ri proposals of image i, K classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ovd_d2.config_file import config_digest, load_config
from ovd_d2.data.model_kind import has_open_vocabulary
from ovd_d2.errors import OVDError
from ovd_d2.files.digests import file_digest
from ovd_d2.inference.open_detector import inference_config, open_detector, run_files, to_sample
from ovd_d2.language import Vocabulary
from ovd_d2.modeling import set_vocabulary
from ovd_d2.modeling.open_vocabulary import part_with
from ovd_d2.proposals.build import RPNProposals
from ovd_d2.pseudo_labelling import Found

BOXES_PER_LABEL = 50


class DetectedLabels:
    """A :class:`~ovd_d2.proposals.queries.BoxSource`: the boxes that score highest for a label.

    The classifier knows all K names, once and for all images, so that a score means the same
    everywhere; but a label gets its best boxes however low they score and whatever other class
    scores more on them. Neither score threshold nor NMS takes a part.

    Args:
        checkpoint: weights of train_net.py.
        vocabulary: K classes.
        device: where to compute.
        config_file: the yaml of the model; "": the config.yaml beside the weights.

    Raises:
        OVDError: no config or checkpoint, weights that do not fit, or a closed-set model; named.
    """

    def __init__(
        self, checkpoint: str, vocabulary: Vocabulary, device: str = "cpu", config_file: str = ""
    ) -> None:
        asked = f"--detector model:{checkpoint}"
        path, config = run_files(checkpoint, config_file, asked=asked)
        self._cfg = inference_config(load_config(str(config)), device)
        self._cfg.MODEL.MASK_ON = self._cfg.MODEL.KEYPOINT_ON = False
        if not has_open_vocabulary(self._cfg):
            raise OVDError(
                f"{asked} has a fixed set of classes and cannot be asked for labels: give an "
                "open-vocabulary detector"
            )
        self._model = open_detector(self._cfg, path)
        set_vocabulary(self._model, vocabulary)
        self.name = model_name(path, config, config_file)

    @torch.no_grad()
    def __call__(
        self, record: dict[str, Any], image: Tensor, classes: Sequence[int]
    ) -> list[Found]:
        """See :class:`~ovd_d2.proposals.queries.BoxSource`."""
        height, width = image.shape[1:]
        sample = to_sample(image.permute(1, 2, 0).numpy(), self._cfg)
        heads = part_with(self._model, "boxes_and_scores")
        if heads is None:
            return self._detected(sample, classes)
        images = self._model.preprocess_image([sample])
        features = self._model.backbone(images.tensor)
        proposals, _ = self._model.proposal_generator(images, features, None)
        (boxes,), (scores,) = heads.boxes_and_scores(images, features, proposals)
        best = best_of_classes(boxes, scores, classes, images.image_sizes[0])
        return [self._found(rows, height, width) for rows in best]

    def _detected(self, sample: dict[str, Any], classes: Sequence[int]) -> list[Found]:
        """The detections of a model that shows no scores beside them."""
        rows = self._model([sample])[0]["instances"].to("cpu")
        found = [rows[rows.pred_classes == k] for k in classes]
        return [
            (one.pred_boxes.tensor[:BOXES_PER_LABEL], one.scores[:BOXES_PER_LABEL])
            for one in (rows[rows.scores.argsort(descending=True, stable=True)] for rows in found)
        ]

    @staticmethod
    def _found(rows: Instances, height: int, width: int) -> Found:
        rows = detector_postprocess(rows, height, width).to("cpu")
        return rows.pred_boxes.tensor, rows.scores


def best_of_classes(
    boxes: Tensor, scores: Tensor, classes: Sequence[int], image_size: tuple[int, int]
) -> list[Instances]:
    """The ``BOXES_PER_LABEL`` best proposals of each class, whatever other class scores more.

    Args:
        boxes: (Ri, 4), absolute; rows that are not finite are passed over.
        scores: (Ri, K + 1).
        classes: indices in [0, K).
        image_size: height and width, to which the boxes are clipped.

    Returns:
        Per class ``pred_boxes`` and ``scores``, the best first.
    """
    finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)
    boxes, scores = boxes[finite].float(), scores[finite]
    results = []
    for k in classes:
        values, rows = scores[:, k].sort(descending=True, stable=True)
        found = Instances(image_size)
        found.pred_boxes = Boxes(boxes[rows[:BOXES_PER_LABEL]])
        found.pred_boxes.clip(image_size)
        found.scores = values[:BOXES_PER_LABEL]
        results.append(found)
    return results


class DetectedObjects:
    """A :class:`~ovd_d2.proposals.queries.BoxSource`: the proposals of a detector's RPN.

    Args:
        checkpoint: weights of train_net.py.
        topk: proposals per image.
        device: where to compute.
        config_file: the yaml of the model; "": the config.yaml beside the weights.
    """

    def __init__(
        self, checkpoint: str, topk: int, device: str = "cpu", config_file: str = ""
    ) -> None:
        path, config = run_files(checkpoint, config_file, asked=f"--detector model:{checkpoint}")
        self._proposals = RPNProposals(str(path), topk, device, str(config))
        self.name = model_name(path, config, config_file) + ", RPN"

    def __call__(
        self, record: dict[str, Any], image: Tensor, classes: Sequence[int]
    ) -> list[Found]:
        """See :class:`~ovd_d2.proposals.queries.BoxSource`."""
        return [self._proposals(record, image)]


def model_name(path: Path, config: Path, given: str) -> str:
    """Weights by their digest, and the yaml by its own where it is not the run's."""
    name = f"model:{path.absolute().parent.name}/{path.name}@{file_digest(path)[:12]}"
    return f"{name}, config {config.name}@{config_digest(config)[:12]}" if given else name
