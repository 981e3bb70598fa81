"""Detectors as functions of one picture's pixels and of class embeddings, ready to be traced.

Letters: H, W height and width of the picture, K classes, D embedding width, R detections, M side of
a mask, A anchors.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from detectron2.export.torchscript_patch import patch_builtin_len
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ovd_d2.errors import OVDError
from ovd_d2.modeling.classifiers import EmbeddingClassifier
from ovd_d2.modeling.dense_heads.candidates import clip_to_image
from ovd_d2.modeling.open_vocabulary import part_with
from ovd_d2.modeling.roi_heads.score_fusion import (
    ScoreRule,
    ensemble_probabilities,
    with_objectness_for,
)

from .graph_selection import best_pairs, class_wise_nms

MOST_PAIRS = 20_000  # best-scored pairs of a region and a class that NMS sees
# Up to so many pairs torchvision shifts boxes by class on a CPU, and so does top_pairs_inference.
SHIFTED_NMS = 1000
# Their builtin len would make numbers of what has to stay a part of the graph.
_COUNTING = [
    "ovd_d2.modeling.classifiers.embedding_classifier",
    "ovd_d2.modeling.roi_heads.image_branch",
    "ovd_d2.modeling.roi_heads.open_vocab_box_predictor",
]
_SWIN = "detectron2.modeling.backbone.swin"
_FOLDER = "`--format folder` exports it for `ovd predict`"
# Meta-architectures that have no matrix of class embeddings as an input, or no boxes as an output.
NO_GRAPH = {
    "GLIP": "reads the names together with the picture, so there are no class embeddings to give",
    "LSeg": "gives label maps, not boxes",
    "GroupViT": "gives label maps, not boxes",
    "CLIP": "classifies whole images",
    "HuggingFaceDetector": "belongs to transformers, whose exporter (Optimum) makes graphs of it",
}


class DetectorGraph(nn.Module):
    """(H, W, 3) pixels and (K, D) class embeddings -> R detections.

    Attributes:
        ensemble: whether it has a third input, which classes are novel.
        masks: whether it gives masks.
        settings: what is fixed in the graph, for its facts.
    """

    ensemble = False
    masks = False
    settings: dict[str, Any]

    @torch.no_grad()
    def forward(
        self, image: Tensor, class_embeddings: Tensor, is_novel: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """
        Args:
            image: (H, W, 3) uint8 or float in 0-255, colours as INPUT.FORMAT says, resized already.
            class_embeddings: (K, D) float32, finite; they are normalised here.
            is_novel: (K,) bool, classes without boxes in training; for an ensemble.

        Returns:
            boxes (R, 4) x0 y0 x1 y1 in pixels of ``image``, scores (R,) in 0..1, classes (R,) int64
            in [0, K), best first; and probabilities (R, M, M) of the pixels inside each box, if
            there are masks.
        """
        with patch_builtin_len(_COUNTING), _traceable_swin():
            pixels = image.permute(2, 0, 1).float()
            return self._detect(pixels, F.normalize(class_embeddings, dim=1), is_novel)

    def _detect(self, pixels: Tensor, classes: Tensor, novel: Tensor | None) -> tuple[Tensor, ...]:
        raise NotImplementedError


class ROIHeadsGraph(DetectorGraph):
    """``GeneralizedRCNN`` with our ROI heads: FPN, C4, Cascade."""

    def __init__(self, model: nn.Module, score_threshold: float | None) -> None:
        """
        Args:
            model: in eval mode; its modules are shared, it is not changed.
            score_threshold: detections must score more; None: as the model says.

        Raises:
            OVDError: a model that no graph can be made of.
        """
        super().__init__()
        heads = _exportable_heads(model)
        predictor = heads.box_predictors[-1]
        self.masks = bool(heads.mask_on)
        self.ensemble = heads.image_branch is not None and heads.score_rule.combine == "ensemble"
        self.rule = EnsembleOfInputs(heads.score_rule) if self.ensemble else None
        if self.ensemble:
            model = _with_part(model, "roi_heads", _with_part(heads, "score_rule", self.rule))
        self.model = model
        if score_threshold is None:
            score_threshold = predictor.test_score_thresh
        self.score_threshold = float(score_threshold)
        self.nms_threshold = float(predictor.test_nms_thresh)
        topk = predictor.test_topk_per_image
        self.most = topk if topk >= 0 else MOST_PAIRS
        self.settings = {
            "score_threshold": self.score_threshold,
            "nms_threshold": self.nms_threshold,
            "most_detections": self.most,
            "most_pairs_before_nms": MOST_PAIRS,
        }

    def _detect(self, pixels: Tensor, classes: Tensor, novel: Tensor | None) -> tuple[Tensor, ...]:
        model = self.model
        images = model.preprocess_image([{"image": pixels}])
        size = images.image_sizes[0]
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features, None)
        with self._given(classes, novel):
            (boxes,), (scores,) = model.roi_heads.boxes_and_scores(images, features, proposals)
        rows, labels, best = best_pairs(scores[:, :-1], self.score_threshold, MOST_PAIRS)
        clipped = Boxes(boxes)
        clipped.clip((size[0], size[1]))
        boxes = clipped.tensor[rows]
        kept = class_wise_nms(boxes, best, labels, self.nms_threshold, SHIFTED_NMS)[: self.most]
        found = _not_empty(boxes[kept], best[kept], labels[kept])
        if not self.masks:
            return found
        instances = Instances((size[0], size[1]))
        instances.pred_boxes, instances.pred_classes = Boxes(found[0]), found[2]
        (instances,) = model.roi_heads.forward_with_given_boxes(features, [instances])
        return *found, instances.pred_masks[:, 0]

    @contextmanager
    def _given(self, classes: Tensor, novel: Tensor | None) -> Iterator[None]:
        """Inside, the heads score against ``classes`` (K, D)."""
        owners = [m for m in self.model.modules() if isinstance(m, EmbeddingClassifier)]
        before = [owner.class_embeddings for owner in owners]
        for owner in owners:
            owner.class_embeddings = classes
        if self.rule is not None:
            self.rule.novel = novel
        try:
            yield
        finally:
            for owner, embeddings in zip(owners, before):
                owner.class_embeddings = embeddings


class EnsembleOfInputs(nn.Module):
    """The ensemble of :class:`ScoreRule` where which classes are novel is an input.

    Attributes:
        novel: (K,) bool.
    """

    def __init__(self, rule: ScoreRule) -> None:
        super().__init__()
        self.base_weight = rule.base_weight
        self.fixed_weight = rule.fixed_weight
        self.novel_partner = rule.novel_partner
        self.novel_power = rule.novel_power
        self.novel: Tensor | None = None

    def forward(
        self, text: Tensor, image: Tensor, objectness: Tensor, is_novel: list[bool]
    ) -> Tensor:
        """See :meth:`ScoreRule.forward`; the attribute counts, not the argument."""
        by_class = torch.where(self.novel, 1 - self.base_weight, self.base_weight)
        fixed = torch.full_like(by_class, self.fixed_weight)
        exponents = torch.where(self.novel.any(), by_class, fixed)
        text = text[:, :-1]
        if self.novel_partner == "objectness":
            text = with_objectness_for(text, objectness, self.novel)
        powers = torch.where(self.novel, self.novel_power, 1.0)
        scores = ensemble_probabilities(text, image, exponents * powers, (1 - exponents) * powers)
        return F.pad(scores, (0, 1))


class ConceptGraph(DetectorGraph):
    """``DetCLIP``. Its memory grows with A x K: all scores of a level are there at a time."""

    def __init__(self, model: nn.Module, score_threshold: float | None) -> None:
        """See :class:`ROIHeadsGraph`."""
        super().__init__()
        self.model = model
        self.score_threshold = float(score_threshold or 0.0)
        self.rule = model.detections
        most = self.rule.max_detections
        self.most = most if most >= 0 else len(model.in_features) * self.rule.candidates_per_level
        self.settings = {
            "score_threshold": self.score_threshold,
            "class_probability_threshold": self.rule.score_threshold,
            "nms_threshold": self.rule.nms_threshold,
            "most_detections": self.most,
            "most_pairs_before_nms": len(model.in_features) * self.rule.candidates_per_level,
        }

    def _detect(self, pixels: Tensor, classes: Tensor, novel: Tensor | None) -> tuple[Tensor, ...]:
        model, rule = self.model, self.rule
        images = model._preprocess([pixels])
        features = model._features(images)
        outputs = model.head(features)
        anchors = model.anchor_generator(features)
        places, start = [], 0
        for level in anchors:
            stop = start + level.tensor.shape[0]
            regions = outputs.regions[0, start:stop]
            probability = torch.addmm(model.head.bias, regions, classes.T).sigmoid()
            products = probability * outputs.centerness[0, start:stop, None].sigmoid()
            products = products.where(probability > rule.score_threshold, -1.0)
            rows, labels, best = best_pairs(products, 0.0, rule.candidates_per_level)
            places.append((rows + start, labels, best))
            start = stop
        rows, labels, best = (torch.cat(column) for column in zip(*places))
        order, _, best = best_pairs(best.sqrt()[:, None], self.score_threshold, MOST_PAIRS)
        rows, labels = rows[order], labels[order]
        every = Boxes.cat(anchors).tensor
        boxes = rule.box2box_transform.apply_deltas(outputs.box_deltas[0][rows], every[rows])
        size = images.image_sizes[0]
        boxes = clip_to_image(boxes, (size[0], size[1]))
        kept = class_wise_nms(boxes, best, labels, rule.nms_threshold, 0)[: self.most]
        return _not_empty(boxes[kept], best[kept], labels[kept])


GRAPHS: dict[str, type[DetectorGraph]] = {"GeneralizedRCNN": ROIHeadsGraph, "DetCLIP": ConceptGraph}


def check_meta_architecture(name: str) -> type[DetectorGraph]:
    """Which graph detectors of MODEL.META_ARCHITECTURE ``name`` have.

    Raises:
        OVDError: none.
    """
    if name in GRAPHS:
        return GRAPHS[name]
    reason = NO_GRAPH.get(name, f"is none of {', '.join(GRAPHS)}, whose graphs are known")
    raise OVDError(f"{name} cannot be exported as a graph: it {reason}; {_FOLDER}.")


def _exportable_heads(model: nn.Module) -> nn.Module:
    """The ROI heads.

    Raises:
        OVDError: a model that no graph can be made of.
    """
    heads = part_with(model, "boxes_and_scores")
    name = type(model.roi_heads).__name__
    if heads is None:
        raise OVDError(
            f"{name} has a fixed set of classes and no class embeddings to give: export it by "
            "Detectron2's own tools, or train with MODEL.ROI_HEADS.NAME OpenVocabROIHeads."
        )
    if model.proposal_generator is None:
        raise OVDError(
            "A detector of ready proposals (MODEL.PROPOSAL_GENERATOR PrecomputedProposals) cannot "
            f"be exported as a graph: it has no RPN; {_FOLDER}."
        )
    if heads.image_branch is not None and heads.image_branch.looks_at_crops:
        raise OVDError(
            f"{type(heads.image_branch).__name__} cannot be exported as a graph: it runs a whole "
            "image model on a crop of every region; distil it (MODEL.IMAGE_BRANCH.NAME "
            'DistilledImageBranch) or give the overrides MODEL.IMAGE_BRANCH.NAME "".'
        )
    if getattr(heads, "keypoint_on", False):
        raise OVDError(
            "Key points cannot be exported as part of a graph: give the overrides "
            "MODEL.KEYPOINT_ON False."
        )
    return heads


@contextmanager
def _traceable_swin() -> Iterator[None]:
    """Inside, Detectron2's Swin Transformer rounds sizes up to whole windows in the graph too. Its
    other decisions about sizes are the same for all pictures, padded to multiples of 32."""

    def ceil(value: float | Tensor) -> float | Tensor:
        return value.ceil() if isinstance(value, Tensor) else math.ceil(value)

    def whole(value: float | Tensor) -> int | Tensor:
        return value.long() if isinstance(value, Tensor) else int(value)

    with (
        mock.patch(f"{_SWIN}.np", SimpleNamespace(ceil=ceil)),
        mock.patch(f"{_SWIN}.int", whole, create=True),
    ):
        yield


def _with_part(module: nn.Module, name: str, part: nn.Module) -> nn.Module:
    """A shallow copy of ``module`` with another submodule ``name``; the rest is shared."""
    other = copy.copy(module)
    other._modules = {**module._modules, name: part}
    return other


def _not_empty(boxes: Tensor, scores: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Detections whose box has an area, as ``detector_postprocess`` keeps them."""
    kept = Boxes(boxes).nonempty()
    return boxes[kept], scores[kept], classes[kept]
