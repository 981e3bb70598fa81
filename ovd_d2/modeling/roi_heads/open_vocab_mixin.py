"""What makes Detectron2's ROI heads open-vocabulary, whichever they are.

Letters: Ri target rows of image i, R regions over the batch, K classes, D embedding width.
"""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import build_box_head
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ovd_d2.errors import OVDError
from ovd_d2.language import (
    ClassEmbedderLike,
    Vocabulary,
    VocabularyLike,
    as_class_embedder,
    as_vocabulary,
    configured_class_embedder,
    configured_vocabulary,
)
from ovd_d2.modeling.classifiers.embedding_classifier import encoders_differ
from ovd_d2.modeling.target_checks import EVALUATION, TargetChecks
from ovd_d2.modeling.tuning import LORA

from .blocked_scoring import BlockedScoring
from .detection_choice import BoxPredictorsChoice
from .head_checks import check_class_agnostic, check_head_name, check_parts
from .image_branch import IMAGE_BRANCH_REGISTRY, ImageBranch
from .image_label_supervision import ImageLabelSupervision
from .open_vocab_box_predictor import OpenVocabBoxPredictor
from .region_distiller import RegionDistiller
from .region_task import REGION_TASK_REGISTRY, RegionTask, registered
from .region_training import RegionTraining
from .score_fusion import ScoreRule


class OpenVocabROIHeadsMixin(RegionTraining, BlockedScoring):
    """Gives any of Detectron2's ROI heads text classes and targets of mixed supervision.

    Target rows may carry ``supervision`` (Ri,): Detectron2's own losses see the BOX rows only, and
    images that have nothing but image-level labels contribute no proposals to them. Without the
    field, losses and their random numbers are Detectron2's, bit by bit. Rows of TEACHER_REGION
    change neither sampled proposals nor random numbers, and the losses by rounding at most: they
    go through the same layers together, and a convolution (C4's res5, on some CPUs) or a matrix
    product over another number of rows need not be equal in the last bit. Batch norm in the box
    head is the exception: its statistics then are over proposals and regions.
    """

    __jit_unused_properties__ = (
        "box_predictors", "vocabulary", "logit_scale", "tasks", "needs_teacher_regions",
        "detection_choice",
        "scores_in_blocks",
    )  # fmt: skip

    pools_for_branch: ClassVar[bool] = False  # whether it honours MODEL.IMAGE_BRANCH.IN_FEATURE

    recipes: ClassVar[dict[str, tuple]] = {
        "full": (),
        "frozen": ("MODEL.TUNE.FROZEN", ["backbone."]),
        "linear": ("MODEL.TUNE.ONLY", ["roi_heads.box_predictor."]),
        "lora": LORA,
    }

    @configurable
    def __init__(
        self,
        *,
        vocabulary: VocabularyLike | None,
        class_embedder: ClassEmbedderLike,
        region_tasks: Sequence[RegionTask] = (),
        image_branch: ImageBranch | None = None,
        score_rule: ScoreRule | None = None,
        target_checks: TargetChecks | None = None,
        **kwargs,
    ):
        """
        Args:
            vocabulary: the K classes to start with, see :func:`ovd_d2.language.as_vocabulary`;
                None: none before :meth:`set_vocabulary`, and nothing is embedded.
            class_embedder: makes (K, D) embeddings of classes, see
                :func:`ovd_d2.language.as_class_embedder`.
            region_tasks: what is learned beside Detectron2's losses; rows of other kinds than
                theirs are ignored.
            image_branch: a second opinion on classes; not together with a RegionDistiller.
            score_rule: how opinions become scores; None: the text branch's probabilities.
            target_checks: knows how the data sets number their classes; None: as the vocabulary.
            kwargs: of Detectron2's heads; every box predictor is an
                :class:`OpenVocabBoxPredictor`, the mask head has ``num_classes=1``. Their own
                ``num_classes`` may be left out: it is K.

        Raises:
            OVDError: parts that do not go together, or embeddings that do not fit.
        """
        super().__init__(**{**kwargs, "num_classes": 1})
        mask_head = getattr(self, "mask_head", None)
        check_parts(self.box_predictors, mask_head, region_tasks, image_branch, score_rule)
        self.region_tasks = nn.ModuleList(region_tasks)
        self.image_branch = image_branch
        self.score_rule = score_rule
        self.target_checks = TargetChecks() if target_checks is None else target_checks
        self.class_embedder = as_class_embedder(class_embedder)
        self._set_vocabulary(vocabulary)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        check_head_name(cfg)
        check_class_agnostic(cfg)
        if cfg.MODEL.IMAGE_BRANCH.IN_FEATURE and not cls.pools_for_branch:
            raise OVDError(f"MODEL.IMAGE_BRANCH.IN_FEATURE: {cls.__name__} has no second pooler.")
        open_vocab = cfg.MODEL.OPEN_VOCAB
        vocabulary = configured_vocabulary(
            open_vocab.VOCABULARY, cfg.DATASETS.TRAIN, cfg.DATASETS.NOVEL_NAMES
        )
        stock_cfg = _stock_config(cfg, 1 if vocabulary is None else len(vocabulary))
        ret = super().from_config(stock_cfg, input_shape)

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
        ret["vocabulary"] = vocabulary
        ret["class_embedder"] = configured_class_embedder(
            open_vocab.TEXT_EMBEDDINGS, open_vocab.TEXT_ENCODER, open_vocab.PROMPTS,
            open_vocab.USE_SYNONYMS, cfg.MODEL.DEVICE,
        )  # fmt: skip
        ret["target_checks"] = TargetChecks(cfg)
        ret.update(cls._extra_parts(cfg, stock_cfg, input_shape, ret))
        return ret

    @classmethod
    def _extra_parts(
        cls, cfg: CfgNode, stock_cfg: CfgNode, input_shape: dict[str, ShapeSpec], ret: dict
    ) -> dict:
        """Region tasks, image branch and score rule as ``cfg`` asks for them."""
        branch, open_vocab = cfg.MODEL.IMAGE_BRANCH.NAME, cfg.MODEL.OPEN_VOCAB
        by_objectness = open_vocab.MULT_PROPOSAL_SCORE or not open_vocab.TRAIN_CLASSIFIER
        if branch and by_objectness:
            raise OVDError(
                "MODEL.OPEN_VOCAB.TRAIN_CLASSIFIER False and MULT_PROPOSAL_SCORE True are for a "
                'single head: set MODEL.IMAGE_BRANCH.NAME "".'
            )
        predictor = ret["box_predictors"][0] if "box_predictors" in ret else ret["box_predictor"]
        shapes = {False: ShapeSpec(channels=predictor.cls_score.in_features),
                  True: _pooled_shape(cfg, input_shape)}  # fmt: skip
        # Those of the list first: their names in a checkpoint then do not depend on the others.
        key = "MODEL.OPEN_VOCAB.REGION_TASKS"
        kinds = [registered(REGION_TASK_REGISTRY, name, key) for name in open_vocab.REGION_TASKS]
        tasks = [kind(cfg, shapes[kind.has_head]) for kind in kinds]
        distillation = cfg.MODEL.REGION_DISTILLATION
        distils = distillation.WEIGHT != 0 or distillation.RELATION_WEIGHT != 0
        if not branch and (distils or not open_vocab.TRAIN_CLASSIFIER):
            tasks.append(RegionDistiller(cfg))
        if cfg.MODEL.IMAGE_LABELS.WEIGHT != 0:
            tasks.append(ImageLabelSupervision(cfg))
        if not branch:
            rule = ScoreRule(combine="objectness") if by_objectness else None
            return {"region_tasks": tasks, "score_rule": rule}
        branch = registered(IMAGE_BRANCH_REGISTRY, branch, "MODEL.IMAGE_BRANCH.NAME")
        branch = branch.build(cfg, partial(cls._second_head, stock_cfg, input_shape))
        return {"region_tasks": tasks, "image_branch": branch, "score_rule": ScoreRule(cfg)}

    @classmethod
    def _second_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> tuple[nn.Module, int]:
        """Another head for pooled regions, with weights of its own, and its width."""
        cfg = cfg.clone()
        cfg.defrost()
        for key in ("NUM_CONV", "CONV_DIM", "NUM_FC", "FC_DIM"):
            if cfg.MODEL.IMAGE_BRANCH[key] >= 0:
                cfg.MODEL.ROI_BOX_HEAD[key] = cfg.MODEL.IMAGE_BRANCH[key]
        feature = cfg.MODEL.IMAGE_BRANCH.IN_FEATURE or cfg.MODEL.ROI_HEADS.IN_FEATURES[0]
        head = build_box_head(cfg, _pooled_shape(cfg, input_shape, feature))
        out = head.output_shape
        return head, out.channels * (out.height or 1) * (out.width or 1)

    @property
    def box_predictors(self) -> list[OpenVocabBoxPredictor]:
        """All box predictors: one, or one per cascade stage."""
        stages = self.box_predictor
        return list(stages) if isinstance(stages, nn.ModuleList) else [stages]

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The present classes; None before any were set."""
        return self.box_predictors[0].vocabulary

    @property
    def logit_scale(self) -> float:
        """Factor on cosines of :meth:`region_embeddings`."""
        return self.box_predictors[-1].cls_score.logit_scale

    @property
    def detection_choice(self) -> BoxPredictorsChoice:
        """See :class:`~ovd_d2.modeling.detection_choice.DetectionChoice`."""
        return BoxPredictorsChoice(
            self.box_predictors, self.score_rule, self.image_branch is not None
        )

    def check_teacher(self, encoder_id: str) -> None:
        """Raises OVDError unless region embeddings by ``encoder_id`` share the classes' space."""
        classes = self.box_predictors[0].cls_score.encoder_id
        if self.needs_teacher_regions and encoders_differ(classes, encoder_id):
            raise OVDError(
                f'DATASETS.REGION_STORE was made by encoder "{encoder_id}", but the class '
                f'embeddings by "{classes}": build the store with the model of '
                "MODEL.OPEN_VOCAB.TEXT_ENCODER, or change that."
            )

    def set_vocabulary(self, vocabulary: VocabularyLike | None) -> None:
        """Swaps the classes of all stages and branches, embedded by ``class_embedder``.

        Raises:
            OVDError: classes that cannot be had, or embeddings that do not fit (see
                :meth:`OpenVocabBoxPredictor.set_vocabulary`); nothing changes then.
        """
        self._set_vocabulary(vocabulary)
        self.target_checks.honoured.add(EVALUATION)  # the caller knows what is asked for

    def _set_vocabulary(self, vocabulary: VocabularyLike | None) -> None:
        if vocabulary is None:
            for predictor in self.box_predictors:
                predictor.vocabulary = None
            self.num_classes, self.is_novel = 1, [False]  # lists that scripting can type
            return
        vocabulary = as_vocabulary(vocabulary)
        embeddings = self.class_embedder.embed(vocabulary)
        if self.image_branch is not None:
            self.image_branch.check_vocabulary(embeddings)
        for predictor in self.box_predictors:
            predictor.set_vocabulary(vocabulary, embeddings)
        if self.image_branch is not None:
            self.image_branch.set_vocabulary(vocabulary, embeddings)
        self._share_class_embeddings()
        self.num_classes = len(vocabulary)
        self.is_novel = list(vocabulary.is_novel)

    def _share_class_embeddings(self) -> None:
        """One (K, D) in memory for all stages and branches: a million of 512 numbers take 2 GB."""
        parts = [*self.box_predictors, *filter(None, [self.image_branch])]
        classifiers = [getattr(part, "cls_score", None) for part in parts]
        first = classifiers[0].class_embeddings
        for classifier in classifiers[1:]:
            if classifier is not None and torch.equal(classifier.class_embeddings, first):
                classifier.class_embeddings = first

    def _check_has_vocabulary(self) -> None:
        if self.vocabulary is None:
            raise OVDError(
                "The model has no classes yet (MODEL.OPEN_VOCAB.VOCABULARY later): call "
                "set_vocabulary first."
            )

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """As in :class:`ROIHeads`; ``targets`` may carry the field ``supervision`` and, in rows of
        TEACHER_REGION, ``teacher_embedding`` (Ri, D); :class:`ClassNumbers` says what
        ``gt_classes`` count. The losses of a model have the same names for every kind of batch;
        those that nothing in it concerns are 0."""
        if not self.training:
            if not torch.jit.is_scripting():
                self._check_has_vocabulary()
                self.target_checks.before_inference(self.vocabulary)
                if self.scores_in_blocks:
                    found = self.boxes_and_blocked_scores(images, features, proposals)
                    found = self._detections(*found, [p.image_size for p in proposals])
                    return self.forward_with_given_boxes(features, found), {}
            boxes, scores = self.boxes_and_scores(images, features, proposals)
            found = self._detections(boxes, scores, [p.image_size for p in proposals])
            return self.forward_with_given_boxes(features, found), {}
        self._check_has_vocabulary()
        return self._train(features, proposals, targets)

    def _detections(
        self, boxes: list[Tensor], scores: list[Tensor], image_sizes: list[tuple[int, int]]
    ) -> list[Instances]:
        """What is kept of :meth:`boxes_and_scores`."""
        return self.box_predictor.detections(boxes, scores, image_sizes)[0]

    def boxes_and_scores(
        self, images: ImageList, features: dict[str, Tensor], proposals: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What the heads make of the proposals, before thresholds and NMS choose among them, as
        tables: with very many classes see :meth:`BlockedScoring.boxes_and_blocked_scores`.

        Args:
            images: the model's input: normalised and padded.
            features: of the backbone.
            proposals: per image, of the proposal generator, in evaluation mode.

        Returns:
            Per image boxes (Ri, 4), absolute, not clipped, in the frame of the model's input, and
            scores (Ri, K + 1) of all branches together, background last. Ri is the number of
            proposals, or of those that the image branch wants to look at.
        """
        pooled = self.pool(features, [p.proposal_boxes for p in proposals])
        predictions = self.box_predictor(self.vectors(self.region_features(pooled)))
        return self._scored(
            images,
            pooled,
            self.box_predictor.predict_boxes(predictions, proposals),
            self.box_predictor.predict_probs(predictions, proposals),
            proposals,
        )

    def region_embeddings(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        """What the heads see in boxes of one's choice, in the space of the text embeddings.

        Args:
            features: of the backbone.
            boxes: per image, absolute, in the frame of the model's input.

        Returns:
            (R, D) fp32, L2-normalised, of the branch that learns from a teacher if there is one
            with a head of its own, else of the (last) text branch.
        """
        pooled, found = self.pool(features, boxes), None
        if self.image_branch is not None:
            found = self.image_branch.region_embeddings(pooled)
        if found is None:
            x = self.vectors(self.region_features(pooled))
            found = self.box_predictors[-1].cls_score.embed_for_teacher(x)
        return found

    def _scored(
        self,
        images: ImageList,
        pooled: Tensor,
        boxes: list[Tensor],
        probabilities: list[Tensor],
        proposals: list[Instances],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """:meth:`boxes_and_scores` from those of the (last) text branch, (Ri, 4) and (Ri, K + 1),
        what it looked at, (R, C, P, P), and the RPN's ``objectness_logits`` (Ri,)."""
        if self.score_rule is None:
            return boxes, probabilities
        else:  # an else, since torch.jit.script leaves out only what is in a branch
            objectness = [p.objectness_logits.sigmoid() for p in proposals]
            second: list[Tensor | None] = [None for _ in boxes]
            if self.image_branch is not None:
                kept = [self.image_branch.candidates(b, o) for b, o in zip(boxes, objectness)]
                boxes = _take(boxes, kept)
                probabilities = _take(probabilities, kept)
                objectness = _take(objectness, kept)
                second = list(self.image_branch.probabilities(pooled, boxes, images))
            novel = self.is_novel
            return boxes, [
                self.score_rule(text, image, o, novel)
                for text, image, o in zip(probabilities, second, objectness)
            ]


def _take(values: list[Tensor], rows: list[Tensor | None]) -> list[Tensor]:
    return [v if kept is None else v[kept] for v, kept in zip(values, rows)]


def _stock_config(cfg: CfgNode, num_classes: int) -> CfgNode:
    """``cfg`` for building Detectron2's own parts: its class count is the vocabulary's, and the
    federated loss, whose weights it would look up by data set name, is left to our predictor."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = False
    return cfg


def _pooled_shape(cfg: CfgNode, input_shape: dict[str, ShapeSpec], feature: str = "") -> ShapeSpec:
    """Of one region pooled from a map; "": that of the first branch."""
    side = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
    channels = input_shape[feature or cfg.MODEL.ROI_HEADS.IN_FEATURES[0]].channels
    return ShapeSpec(channels=channels, height=side, width=side)
