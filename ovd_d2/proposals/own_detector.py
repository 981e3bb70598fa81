"""Box proposers out of our own detectors: the best boxes of labels, and RPN proposals.

Letters: Ri proposals of image i, K classes.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ovd_d2.config_file import config_digest, load_config
from ovd_d2.data.held_out import novel_mask
from ovd_d2.data.mixing import training_datasets
from ovd_d2.data.model_kind import answers_questions, has_open_vocabulary
from ovd_d2.errors import OVDError
from ovd_d2.files.digests import file_digest
from ovd_d2.inference.open_detector import (
    inference_config,
    open_detector,
    run_files,
    to_sample,
    trained_vocabulary,
)
from ovd_d2.language import Vocabulary
from ovd_d2.modeling import set_vocabulary
from ovd_d2.modeling.open_vocabulary import part_with
from ovd_d2.modeling.roi_heads import BlockedScores
from ovd_d2.pseudo_labelling import Found

logger = logging.getLogger(__name__)

BOXES_PER_LABEL = 50


class DetectedLabels:
    """A :class:`~ovd_d2.proposals.proposer.BoxProposer`: the boxes that score highest for a label.

    The classifier knows all K names, once and for all images, so that a score means the same
    everywhere; but a label gets its best boxes however low they score and whatever other class
    scores more on them. Neither score threshold nor NMS takes a part.

    Args:
        checkpoint: weights of train_net.py.
        vocabulary: K classes.
        device: where to compute.
        config_file: the yaml of the model; "": the config.yaml beside the weights.
        asked: what named the checkpoint, for messages; "": the checkpoint.

    Raises:
        OVDError: no config or checkpoint, weights that do not fit, or a closed-set model; named.
    """

    has_scores = True

    def __init__(
        self,
        checkpoint: str,
        vocabulary: Vocabulary,
        device: str = "cpu",
        config_file: str = "",
        asked: str = "",
    ) -> None:
        path, config = run_files(checkpoint, config_file, asked=asked)
        cfg = load_config(str(config))
        self._cfg = inference_config(cfg, device)
        self._cfg.MODEL.MASK_ON = self._cfg.MODEL.KEYPOINT_ON = False
        if not has_open_vocabulary(self._cfg):
            raise OVDError(
                f"{asked or checkpoint} has a fixed set of classes and cannot be asked for labels: "
                "give an open-vocabulary detector"
            )
        self._model = open_detector(self._cfg, path, trained_vocabulary(cfg))
        set_vocabulary(self._model, vocabulary)
        self.name = model_name(path, config, config_file)

    @torch.no_grad()
    def __call__(
        self, record: dict[str, Any], image: Tensor, classes: Sequence[int] | None = None
    ) -> list[Found]:
        """Boxes of one image, as :class:`~ovd_d2.proposals.proposer.BoxProposer` defines them."""
        height, width = image.shape[1:]
        sample = to_sample(image.permute(1, 2, 0).numpy(), self._cfg)
        heads = part_with(self._model, "boxes_and_scores")
        if heads is None:
            return self._detected(sample, classes)
        images = self._model.preprocess_image([sample])
        features = self._model.backbone(images.tensor)
        proposals, _ = self._model.proposal_generator(images, features, None)
        in_blocks = heads.scores_in_blocks
        score = heads.boxes_and_blocked_scores if in_blocks else heads.boxes_and_scores
        (boxes,), (scores,) = score(images, features, proposals)
        best = best_of_classes(boxes, scores, classes, images.image_sizes[0])
        return [self._found(rows, height, width) for rows in best]

    def _detected(self, sample: dict[str, Any], classes: Sequence[int]) -> list[Found]:
        """The detections of a model that shows no scores beside them."""
        output = self._model([sample])[0]
        if "instances" not in output:
            raise OVDError(f"{self.name} gives no boxes but label maps: give a detector.")
        rows = output["instances"].to("cpu")
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
    boxes: Tensor,
    scores: Tensor | BlockedScores,
    classes: Sequence[int],
    image_size: tuple[int, int],
) -> list[Instances]:
    """The ``BOXES_PER_LABEL`` best proposals of each class, whatever other class scores more.

    Args:
        boxes: (Ri, 4), absolute; rows that are not finite are passed over.
        scores: (Ri, K + 1), or (Ri, K) in blocks.
        classes: indices in [0, K).
        image_size: height and width, to which the boxes are clipped.

    Returns:
        Per class ``pred_boxes`` and ``scores``, the best first.
    """
    columns = torch.tensor(list(classes), dtype=torch.int64, device=boxes.device)
    if isinstance(scores, BlockedScores):
        finite, scores = scores.is_finite(), scores.columns(columns)
    else:
        finite, scores = torch.isfinite(scores).all(dim=1), scores[:, columns]
    finite &= torch.isfinite(boxes).all(dim=1)
    boxes = boxes[finite].float()
    results = []
    for of_class in scores[finite].T:
        values, rows = of_class.sort(descending=True, stable=True)
        found = Instances(image_size)
        found.pred_boxes = Boxes(boxes[rows[:BOXES_PER_LABEL]])
        found.pred_boxes.clip(image_size)
        found.scores = values[:BOXES_PER_LABEL]
        results.append(found)
    return results


class RPNProposals:
    """A :class:`~ovd_d2.proposals.proposer.BoxProposer`: top proposals of the RPN of a detector
    that ``train_net.py`` trained; no class is used.

    Only backbone and RPN are built, so neither text encoder nor vocabulary is needed. Scores are
    the RPN's objectness as a probability.

    Args:
        checkpoint: weights with the run's ``config.yaml`` beside them.
        topk: boxes to keep per image after NMS; replaces the config's numbers.
        device: where to compute.
        config_file: instead of the config.yaml beside the weights.
        asked: what named the checkpoint, for messages; "": the checkpoint.

    Raises:
        OVDError: no config or checkpoint, or weights that do not fit; named.
    """

    has_scores = True

    def __init__(
        self,
        checkpoint: str,
        topk: int,
        device: str = "cpu",
        config_file: str = "",
        asked: str = "",
    ) -> None:
        path, config = run_files(checkpoint, config_file, asked=asked)
        cfg = load_config(str(config))
        if answers_questions(cfg):
            raise OVDError(
                f"{asked or checkpoint} is a {cfg.MODEL.META_ARCHITECTURE}, which has no RPN: "
                "write model: to ask it for objects"
            )
        _warn_unless_base_only(cfg, checkpoint)
        cfg = inference_config(cfg, device)
        cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"  # nothing behind the RPN is built
        cfg.MODEL.RPN.POST_NMS_TOPK_TEST = topk
        cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = max(cfg.MODEL.RPN.PRE_NMS_TOPK_TEST, topk)
        self._cfg, self._model, self.files = cfg, open_detector(cfg, path), (path, config)
        self.name = f"rpn:{path.parent.name}/{path.name}@{file_digest(path)[:12]}, top {topk}"

    @torch.no_grad()
    def __call__(
        self, record: dict[str, Any], image: Tensor, classes: Sequence[int] | None = None
    ) -> list[Found]:
        """Boxes of one image, as :class:`~ovd_d2.proposals.proposer.BoxProposer` defines them."""
        (output,) = self._model([to_sample(image.permute(1, 2, 0).numpy(), self._cfg)])
        found = output["proposals"].to("cpu")
        return [(found.proposal_boxes.tensor, found.objectness_logits.sigmoid())]


def model_name(path: Path, config: Path, given: str) -> str:
    """For a file's facts: the weights' digest, and the yaml's where it is not the run's."""
    name = f"model:{path.absolute().parent.name}/{path.name}@{file_digest(path)[:12]}"
    return f"{name}, config {config.name}@{config_digest(config)[:12]}" if given else name


def _warn_unless_base_only(cfg: CfgNode, checkpoint: str) -> None:
    """Warns of a detector that saw boxes of novel classes: it would leak them to the student."""
    if cfg.DATASETS.NOVEL_NAMES:
        return  # they were held out
    for name in training_datasets(cfg):
        metadata = MetadataCatalog.get(name) if name in MetadataCatalog.list() else None
        if metadata is None or not any(metadata.get("is_novel") or novel_mask(cfg, name)):
            logger.warning(
                "%s was trained on %s, which is not known to hold boxes of base classes only: its "
                "proposals may know novel classes.",
                checkpoint,
                name,
            )
