"""Boxes for labels by a detector of ours.

Letters: Ri proposals of image i, K classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ovd_d2.checkpoint.atomic_checkpointer import AtomicCheckpointer
from ovd_d2.config_file import config_digest
from ovd_d2.engine.setup import load_config
from ovd_d2.errors import OVDError
from ovd_d2.files.digests import file_digest
from ovd_d2.language import TextEmbeddingBank, Vocabulary
from ovd_d2.modeling import get_vocabulary, set_vocabulary
from ovd_d2.proposals.build import RPNProposals
from ovd_d2.pseudo_labelling import Found

BOXES_PER_LABEL = 50
_PLACEHOLDER = "object"  # to build the model with; the labels follow


class DetectedLabels:
    """A :class:`~ovd_d2.pseudo_labelling.BoxSource`: the boxes that score highest for a label.

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
        path, config = run_files(checkpoint, config_file)
        cfg = _inference_config(load_config(str(config)), device)
        self._model = build(cfg, path, vocabulary, device)
        self._resize = T.AugmentationList(detection_utils.build_augmentation(cfg, is_train=False))
        self._bgr = cfg.INPUT.FORMAT == "BGR"
        self.name = model_name(path, config, config_file)

    @torch.no_grad()
    def __call__(
        self, record: dict[str, Any], image: Tensor, classes: Sequence[int]
    ) -> list[Found]:
        """See :class:`~ovd_d2.pseudo_labelling.BoxSource`."""
        pixels = T.AugInput(image.permute(1, 2, 0).numpy())
        self._resize(pixels)
        resized = torch.from_numpy(pixels.image.copy()).permute(2, 0, 1)
        height, width = image.shape[1:]
        sample = {"image": resized.flip(0) if self._bgr else resized}
        images = self._model.preprocess_image([sample])
        features = self._model.backbone(images.tensor)
        proposals, _ = self._model.proposal_generator(images, features, None)
        heads = self._model.roi_heads
        (boxes,), (scores,) = heads.boxes_and_scores(images, features, proposals)
        best = best_of_classes(boxes, scores, classes, images.image_sizes[0])
        return [self._found(rows, height, width) for rows in best]

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
    """A :class:`~ovd_d2.pseudo_labelling.BoxSource`: the proposals of a detector's RPN.

    Args:
        checkpoint: weights of train_net.py.
        topk: proposals per image.
        device: where to compute.
        config_file: the yaml of the model; "": the config.yaml beside the weights.
    """

    def __init__(
        self, checkpoint: str, topk: int, device: str = "cpu", config_file: str = ""
    ) -> None:
        path, config = run_files(checkpoint, config_file)
        self._proposals = RPNProposals(str(path), topk, device, str(config))
        self.name = model_name(path, config, config_file) + ", RPN"

    def __call__(
        self, record: dict[str, Any], image: Tensor, classes: Sequence[int]
    ) -> list[Found]:
        """See :class:`~ovd_d2.pseudo_labelling.BoxSource`."""
        return [self._proposals(record, image)]


def run_files(checkpoint: str, config_file: str = "") -> tuple[Path, Path]:
    """Weights and yaml of a run.

    Args:
        checkpoint: a file of weights, or a folder with model_final.pth.
        config_file: instead of the config.yaml beside the weights.

    Raises:
        OVDError: one of them is missing.
    """
    path = Path(checkpoint)
    if path.is_dir():
        path = path / "model_final.pth"
    config = Path(config_file or path.parent / "config.yaml")
    for file in (path, config):
        if not file.is_file():
            raise OVDError(
                f"--detector model:{checkpoint} needs {file}, which does not exist: give a "
                "checkpoint in the OUTPUT_DIR of train_net.py, or the yaml by --config-file"
            )
    return path, config


def model_name(path: Path, config: Path, given: str) -> str:
    """Weights by their digest, and the yaml by its own where it is not the run's."""
    name = f"model:{path.absolute().parent.name}/{path.name}@{file_digest(path)[:12]}"
    return f"{name}, config {config.name}@{config_digest(config)[:12]}" if given else name


def build(cfg: CfgNode, path: Path, vocabulary: Vocabulary, device: str) -> nn.Module:
    """The detector of ``cfg`` with the weights in ``path`` and the classes of ``vocabulary``.

    Raises:
        OVDError: a closed-set model, or weights that do not fit.
    """
    from ovd_d2.engine.trainer import OpenVocabTrainer

    model = OpenVocabTrainer.build_model(cfg).eval()
    if get_vocabulary(model) is None:
        raise OVDError(
            f"--detector model:{path} has a fixed set of classes and cannot be asked for labels: "
            "give an open-vocabulary detector"
        )
    open_vocab = cfg.MODEL.OPEN_VOCAB
    bank = TextEmbeddingBank(
        open_vocab.TEXT_ENCODER, open_vocab.PROMPTS, open_vocab.USE_SYNONYMS, device=device
    )
    set_vocabulary(model, vocabulary, bank.embed(vocabulary))
    AtomicCheckpointer(model, save_to_disk=False, whole=True).load(str(path))
    return model


def _inference_config(cfg: CfgNode, device: str) -> CfgNode:
    """For building the model without ImageNet weights, masks and the training data's names."""
    if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
        raise OVDError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT}; pseudo-labels need RGB or BGR.")
    cfg.MODEL.DEVICE = device
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.TIMM.WEIGHTS = ""
    cfg.MODEL.LOAD_PROPOSALS = False
    cfg.MODEL.MASK_ON = False
    cfg.MODEL.KEYPOINT_ON = False
    cfg.MODEL.OPEN_VOCAB.VOCABULARY = _PLACEHOLDER
    cfg.MODEL.OPEN_VOCAB.TEXT_EMBEDDINGS = ""
    return cfg
