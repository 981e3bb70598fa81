"""Detectron2's Fast R-CNN output layers with text as the classifier.

Letters: R regions over the batch, K classes, D embedding width.
"""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.fast_rcnn import (
    FastRCNNOutputLayers,
    _log_classification_stats,
    fast_rcnn_inference,
)
from detectron2.structures import Instances
from fvcore.nn import weight_init
from torch import Tensor, nn

from ovd_d2.errors import OVDError
from ovd_d2.language import TextEmbeddings, Vocabulary
from ovd_d2.layers.row_softmax import row_softmax
from ovd_d2.losses import (
    federated_class_mask,
    masked_softmax_cross_entropy,
    weighted_sigmoid_cross_entropy,
)
from ovd_d2.modeling.classifiers import EmbeddingClassifier, build_projection

from .top_pairs_inference import of_first_classes, top_pairs_inference


class OpenVocabBoxPredictor(FastRCNNOutputLayers):
    """``cls_score`` is an :class:`EmbeddingClassifier`; boxes are class-agnostic.

    Classes that are novel, or that no training image shows, are held out of the classification
    loss: out of the softmax's denominator (ViLD), or of weight 0 in the sigmoid loss (RKD).
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        classifier: EmbeddingClassifier,
        box_mlp: bool = False,
        use_sigmoid_ce: bool = False,
        use_fed_loss: bool = False,
        fed_loss_num_classes: int = 50,
        fed_loss_freq_weight_power: float = 0.5,
        train_classifier: bool = True,
        **kwargs,
    ):
        """
        Args:
            input_shape: of the region features.
            classifier: scores regions; takes features of ``input_shape``.
            box_mlp: regress boxes by Linear - ReLU - Linear (RKD) instead of one Linear.
            use_sigmoid_ce: sigmoid per class (RKD) instead of softmax (ViLD).
            use_fed_loss: LVIS's federated loss; needs ``use_sigmoid_ce`` and a vocabulary with
                image counts.
            fed_loss_num_classes: classes kept per batch.
            fed_loss_freq_weight_power: negatives are drawn with image count ** this.
            train_classifier: False (ViLD-image): ``loss_cls`` is 0 and probabilities, since the
                background is never learned, are a softmax over the names.
            kwargs: the rest of :class:`FastRCNNOutputLayers`'s arguments. ``num_classes`` is the
                vocabulary's business and not looked at, ``cls_agnostic_bbox_reg`` may only be True
                (a model-zoo node that gets this class as its ``_target_`` names them).

        Raises:
            OVDError: settings that do not go together.
        """
        kwargs.pop("num_classes", None)
        if not kwargs.pop("cls_agnostic_bbox_reg", True):
            raise OVDError("cls_agnostic_bbox_reg is False; boxes that classes own can not be.")
        if use_fed_loss and not use_sigmoid_ce:
            raise OVDError(
                "MODEL.ROI_BOX_HEAD.USE_FED_LOSS needs MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE True."
            )
        # One class here: the parent would make a (K + 1)-row layer only to have it replaced.
        super().__init__(
            input_shape,
            num_classes=1,
            cls_agnostic_bbox_reg=True,
            use_sigmoid_ce=use_sigmoid_ce,
            **kwargs,
        )
        self.cls_score = classifier
        if box_mlp:
            width = self.bbox_pred.in_features
            hidden = nn.Linear(width, width)
            weight_init.c2_xavier_fill(hidden)  # as in Detic and RKD
            self.bbox_pred = nn.Sequential(hidden, nn.ReLU(inplace=True), self.bbox_pred)
        self.train_classifier = train_classifier
        self.use_fed_loss = use_fed_loss
        self.fed_loss_num_classes = fed_loss_num_classes
        self.fed_loss_freq_weight_power = fed_loss_freq_weight_power
        self.found_classes: int | None = None  # see DetectionChoice
        self.vocabulary: Vocabulary | None = None
        self.register_buffer("excluded", torch.zeros(0, dtype=torch.bool), persistent=False)
        self.register_buffer("sampling_weight", torch.zeros(0), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        ret = super().from_config(cfg, input_shape)
        for key in ("num_classes", "cls_agnostic_bbox_reg", "get_fed_loss_cls_weights"):
            ret.pop(key)
        width = input_shape.channels * (input_shape.width or 1) * (input_shape.height or 1)
        open_vocab = cfg.MODEL.OPEN_VOCAB
        ret["classifier"] = EmbeddingClassifier(
            width,
            open_vocab.EMBED_DIM,
            logit_scale=open_vocab.LOGIT_SCALE,
            background=open_vocab.BACKGROUND,
            bias_init=open_vocab.BIAS_INIT if open_vocab.USE_BIAS else None,
            projection=build_projection(
                open_vocab.PROJECTION,
                width,
                open_vocab.EMBED_DIM,
                hidden=open_vocab.PROJECTION_HIDDEN,
                transfer_start=open_vocab.TRANSFER_START,
                transfer_teacher=open_vocab.TRANSFER_TEACHER,
            ),
        )
        ret["train_classifier"] = open_vocab.TRAIN_CLASSIFIER
        ret["box_mlp"] = open_vocab.BOX_MLP
        ret["fed_loss_freq_weight_power"] = cfg.MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER
        return ret

    def set_vocabulary(self, vocabulary: Vocabulary, embeddings: TextEmbeddings) -> None:
        """Swaps the class space: logits, background index and held-out classes.

        Args:
            vocabulary: K classes.
            embeddings: their (K, D) embeddings, in the same order.

        Raises:
            OVDError: names and embeddings differ, or wrong width or encoder. The present
                vocabulary then stays.
        """
        if tuple(embeddings.names) != vocabulary.names:
            raise OVDError(
                f"The embeddings are of {len(embeddings.names)} names that differ from the "
                f"vocabulary's {len(vocabulary)}: compute them from this vocabulary."
            )
        self.cls_score.set_class_embeddings(embeddings.embeddings, embeddings.encoder_id)
        device = self.cls_score.class_embeddings.device
        excluded = held_out(vocabulary)
        counts = torch.tensor(vocabulary.image_counts or (1,) * len(vocabulary)).float()
        weight = (counts**self.fed_loss_freq_weight_power).masked_fill(excluded, 0)
        self.excluded = excluded.to(device)
        self.sampling_weight = weight.to(device)
        self.vocabulary = vocabulary
        self.num_classes = len(vocabulary)

    def predict_probs(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> list[Tensor]:
        """Per image (Ri, K + 1): Detectron2's, or a softmax over the K names and a column of 0."""
        logits, _ = predictions
        if not self.train_classifier:
            probabilities = F.pad(row_softmax(logits[:, :-1]), (0, 1))
        elif self.use_sigmoid_ce:
            probabilities = logits.sigmoid()
        else:
            probabilities = row_softmax(logits)
        return list(probabilities.split([len(p) for p in proposals]))

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """As :meth:`FastRCNNOutputLayers.inference`, made for very many classes."""
        return self.detections(
            self.predict_boxes(predictions, proposals),
            self.predict_probs(predictions, proposals),
            [p.image_size for p in proposals],
        )

    def detections(
        self,
        boxes: list[Tensor],
        probabilities: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> tuple[list[Instances], list[Tensor]]:
        """:func:`top_pairs_inference` with the thresholds of ``MODEL.ROI_HEADS`` and ``TEST``;
        under ``torch.jit.script`` Detectron2's slower function, which finds the same.

        Args:
            boxes: per image (Ri, 4), absolute x0 y0 x1 y1.
            probabilities: per image (Ri, K + 1), of this predictor or of several together.
            image_shapes: per image (height, width).
        """
        if torch.jit.is_scripting():
            return fast_rcnn_inference(
                boxes,
                probabilities,
                image_shapes,
                self.test_score_thresh,
                self.test_nms_thresh,
                self.test_topk_per_image,
            )
        else:
            if self.found_classes is not None:
                probabilities = [of_first_classes(p, self.found_classes) for p in probabilities]
            return top_pairs_inference(
                boxes,
                probabilities,
                image_shapes,
                self.test_score_thresh,
                self.test_nms_thresh,
                self.test_topk_per_image,
            )

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> dict:
        """``loss_cls`` and ``loss_box_reg``, as in :class:`FastRCNNOutputLayers`.

        Args:
            predictions: logits (R, K + 1), box deltas (R, 4).
            proposals: with ``proposal_boxes``, ``gt_boxes``, ``gt_classes`` in [0, K].
        """
        logits, deltas = predictions
        no_boxes, no_targets = deltas.new_zeros(0, 4), deltas.new_zeros(0, dtype=torch.int64)
        targets = torch.cat([no_targets, *(p.gt_classes for p in proposals)])
        _log_classification_stats(logits, targets)
        boxes = torch.cat([no_boxes, *(p.proposal_boxes.tensor for p in proposals)])
        # Images without ground truth have no gt_boxes; their regions are all background.
        gt_boxes = [p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes for p in proposals]
        gt_boxes = torch.cat([no_boxes, *(b.tensor for b in gt_boxes)])
        losses = {
            "loss_cls": self.classification_loss(logits, targets),
            "loss_box_reg": self.box_reg_loss(boxes, gt_boxes, deltas, targets),
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def classification_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(R, K + 1) logits, (R,) int64 targets in [0, K] -> scalar, held-out classes left out.

        Raises:
            OVDError: federated loss without image counts in the vocabulary.
        """
        if not self.train_classifier:
            return logits.sum() * 0.0
        if not self.use_sigmoid_ce:
            return masked_softmax_cross_entropy(logits, targets, self.excluded)
        weight = (~self.excluded).to(logits.dtype)
        if self.use_fed_loss:
            if not self.vocabulary.image_counts:
                raise OVDError(
                    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS needs a vocabulary with image counts (of an "
                    "LVIS-style data set or json): switch it off or set "
                    "MODEL.OPEN_VOCAB.VOCABULARY."
                )
            weight = weight * federated_class_mask(
                targets, self.sampling_weight, self.fed_loss_num_classes
            )
        return weighted_sigmoid_cross_entropy(logits, targets, weight)


def held_out(vocabulary: Vocabulary) -> Tensor:
    """(K,) bool: classes that take no part in training, novel or without a training image."""
    excluded = torch.tensor(vocabulary.is_novel, dtype=torch.bool)
    if vocabulary.image_counts:
        excluded |= torch.tensor(vocabulary.image_counts) == 0
    return excluded
