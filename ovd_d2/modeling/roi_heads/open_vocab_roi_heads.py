"""ROI heads for Detectron2's unmodified ``GeneralizedRCNN`` with a vocabulary of text.

Letters: Ri target rows of image i, K classes, D embedding width.
"""

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    CascadeROIHeads,
    Res5ROIHeads,
    StandardROIHeads,
)
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from ovd_d2.errors import OVDError
from ovd_d2.language import TextEmbeddings, Vocabulary, build_class_embeddings
from ovd_d2.structures import Supervision, is_box_supervised, rows_with

from .open_vocab_box_predictor import OpenVocabBoxPredictor


def _require_class_agnostic(cfg: CfgNode) -> None:
    if not cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
        raise OVDError(
            "Open-vocabulary heads need boxes that no class owns: set "
            "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True."
        )
    if cfg.MODEL.MASK_ON and not cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK:
        raise OVDError(
            "Open-vocabulary heads need masks that no class owns: set "
            "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK True."
        )


class OpenVocabROIHeadsMixin:
    """Gives any of Detectron2's ROI heads text classes and targets of mixed supervision.

    Target rows may carry ``supervision`` (Ri,): Detectron2's own losses see the BOX rows only, and
    images that have nothing but image-level labels contribute no proposals to them. Without the
    field, losses and their random numbers are Detectron2's, bit by bit.
    """

    @configurable
    def __init__(self, *, vocabulary: Vocabulary, text_embeddings: TextEmbeddings, **kwargs):
        """
        Args:
            vocabulary: the K classes to start with.
            text_embeddings: their (K, D) embeddings.
            kwargs: of Detectron2's heads; every box predictor is an
                :class:`OpenVocabBoxPredictor`.
        """
        super().__init__(**kwargs)
        self.set_vocabulary(vocabulary, text_embeddings)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        _require_class_agnostic(cfg)
        open_vocab = cfg.MODEL.OPEN_VOCAB
        vocabulary, embeddings = build_class_embeddings(
            vocabulary=open_vocab.VOCABULARY,
            train_datasets=cfg.DATASETS.TRAIN,
            text_embeddings=open_vocab.TEXT_EMBEDDINGS,
            text_encoder=open_vocab.TEXT_ENCODER,
            prompts=open_vocab.PROMPTS,
            use_synonyms=open_vocab.USE_SYNONYMS,
            embed_dim=open_vocab.EMBED_DIM,
        )
        ret = super().from_config(_stock_config(cfg, len(vocabulary)), input_shape)

        def text_predictor(stock: FastRCNNOutputLayers) -> OpenVocabBoxPredictor:
            return OpenVocabBoxPredictor(
                cfg,
                ShapeSpec(channels=stock.bbox_pred.in_features),
                box2box_transform=stock.box2box_transform,
            )

        if "box_predictors" in ret:  # one per cascade stage
            ret["box_predictors"] = [text_predictor(p) for p in ret["box_predictors"]]
        else:
            ret["box_predictor"] = text_predictor(ret["box_predictor"])
        ret.update(vocabulary=vocabulary, text_embeddings=embeddings)
        return ret

    @property
    def box_predictors(self) -> list[OpenVocabBoxPredictor]:
        """All box predictors: one, or one per cascade stage."""
        stages = self.box_predictor
        return list(stages) if isinstance(stages, nn.ModuleList) else [stages]

    @property
    def vocabulary(self) -> Vocabulary:
        """The present classes."""
        return self.box_predictors[0].vocabulary

    def set_vocabulary(self, vocabulary: Vocabulary, embeddings: TextEmbeddings) -> None:
        """Swaps the class space of all stages; raises OVDError and changes nothing if the
        embeddings do not fit (see :meth:`OpenVocabBoxPredictor.set_vocabulary`)."""
        for predictor in self.box_predictors:
            predictor.set_vocabulary(vocabulary, embeddings)
        self.num_classes = len(vocabulary)

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """As in :class:`ROIHeads`; ``targets`` may carry the field ``supervision``."""
        if self.training:
            proposals = [p if is_box_supervised(t) else p[:0] for p, t in zip(proposals, targets)]
            targets = [rows_with(t, Supervision.BOX) for t in targets]
        return super().forward(images, features, proposals, targets)


def _stock_config(cfg: CfgNode, num_classes: int) -> CfgNode:
    """``cfg`` for building Detectron2's own parts: its class count is the vocabulary's, and the
    federated loss, whose weights it would look up by data set name, is left to our predictor."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = False
    return cfg


@ROI_HEADS_REGISTRY.register()
class OpenVocabROIHeads(OpenVocabROIHeadsMixin, StandardROIHeads):
    """Text classes for FPN and C5 detectors (Faster / Mask R-CNN)."""


@ROI_HEADS_REGISTRY.register()
class OpenVocabCascadeROIHeads(OpenVocabROIHeadsMixin, CascadeROIHeads):
    """Text classes for Cascade R-CNN: one projection per stage, probabilities averaged."""

    def _forward_box(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> dict[str, Tensor] | list[Instances]:
        if self.training:
            return super()._forward_box(features, proposals, targets)
        # The parent's inference calls Detectron2's NMS by name; this is its loop with ours.
        features = [features[name] for name in self.box_in_features]
        image_sizes = [p.image_size for p in proposals]
        boxes, stages = None, []
        for k, predictor in enumerate(self.box_predictors):
            if k > 0:
                proposals = self._create_proposals_from_boxes(boxes, image_sizes)
            predictions = self._run_stage(features, proposals, k)
            boxes = predictor.predict_boxes(predictions, proposals)
            stages.append(predictor.predict_probs(predictions, proposals))
        mean = [sum(probabilities) * (1.0 / len(stages)) for probabilities in zip(*stages)]
        return predictor.detections(boxes, mean, image_sizes)[0]


@ROI_HEADS_REGISTRY.register()
class OpenVocabRes5ROIHeads(OpenVocabROIHeadsMixin, Res5ROIHeads):
    """Text classes for C4 detectors: the region feature is res5's spatial mean."""
