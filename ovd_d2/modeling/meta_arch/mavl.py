"""MAVL (MDef-DETR): objects found by asking for them in words, which the image does not wait for.

Letters: N images, P texts, B pairs of an image and a text, Q object queries, L tokens, T word
columns, K classes, R detections. Boxes of the network are cx cy w h in 0..1 of the image without
padding.

Source: Maaz et al. 2021, "Class-agnostic Object Detection with Multi-modal Transformer", section 3,
and the public code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.backbone import Backbone
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_convert

from ovd_d2.errors import OVDError
from ovd_d2.language import (
    Vocabulary,
    VocabularyLike,
    as_vocabulary,
    configured_vocabulary,
    fill,
)
from ovd_d2.modeling.decoders import (
    DeformableTransformer,
    FeatureLevels,
    ImageQueries,
    QueryHeads,
)
from ovd_d2.modeling.fusion import LateFusion
from ovd_d2.modeling.hungarian_matching import HungarianMatcher
from ovd_d2.modeling.query_merging import QueryMerging
from ovd_d2.modeling.set_criterion import SetCriterion
from ovd_d2.modeling.target_checks import TargetChecks
from ovd_d2.modeling.text_backbone import build_text_backbone
from ovd_d2.structures.grounding import CaptionTokens, TokenSpans

from .word_detector import WordDetector

Outputs = dict[str, Any]


@dataclass(frozen=True)
class EncodedText:
    """P texts: token features ``words`` (P, L, Ct) and ``mask`` (P, L) bool, False on padding."""

    words: Tensor
    mask: Tensor

    def __len__(self) -> int:
        """P."""
        return len(self.mask)


@META_ARCH_REGISTRY.register()
class MAVL(WordDetector):
    """One look at the image, any number of questions about it::

        image -> backbone -> levels -> transformer (encoder, decoder) -> Q object queries
        text  -> text backbone ----------------------------------------> L tokens
                 Q + L -> fusion -> heads: word columns or "no object", and a box, of each query

    Without a vocabulary it finds objects of any class: each of ``queries`` is asked, what they find
    is merged, and ``pred_classes`` are 0. With one it asks for every class by itself
    ("every {name}"). The score of a box is 1 - P("no object"). With a ``caption``, a
    :class:`TokenSpans`, it finds its phrases: ``pred_classes`` are their places, and the score is
    the probability that the words of the phrase share.

    Input: Detectron2's list of dicts. Inference gives ``[{"instances": ...}]`` with ``pred_boxes``,
    ``scores`` in 0..1 and ``pred_classes``, best first. Backbone and transformer run once per image
    whatever is asked; the results for an image do not depend on the images it is batched with.

    Training takes samples with a ``caption`` of P phrases and ``instances`` with ``gt_boxes`` (Gi,
    4) and ``gt_phrases`` (Gi,) int64 in [0, P), and returns the losses of :class:`SetCriterion`. A
    model without text learns boxes alone, with or without a caption.

    A model without text (``fusion`` None; MAVL's control "minus language") has heads of two
    columns, reads the queries after every decoder layer, and finds objects of any class alone.
    """

    reads_captions = True
    finds_objects = True  # of any class, without a vocabulary

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        levels: FeatureLevels,
        transformer: DeformableTransformer,
        text_backbone: nn.Module | None,
        fusion: LateFusion | None,
        heads: QueryHeads,
        merging: QueryMerging,
        vocabulary: VocabularyLike | None,
        in_features: Sequence[str],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        queries: Sequence[str] = ("all objects",),
        class_query: str = "every {}",
        pairs_at_once: int = 16,
        criterion: SetCriterion | None = None,
        target_checks: TargetChecks | None = None,
    ) -> None:
        """
        Args:
            backbone: images -> feature maps, ``in_features`` among them.
            levels: these maps -> maps of one width.
            transformer: those -> object queries; with ``all_layers`` if there is no text.
            text_backbone: texts -> token features, see ``text_backbone.registry``; None: no text.
            fusion: object queries and tokens -> object queries; None: no text.
            heads: object queries -> word columns and boxes.
            merging: of the boxes of several texts.
            vocabulary: the K classes to start with; None: objects of any class.
            in_features: names of the feature maps, finest first.
            pixel_mean: of the pixels as they come, 0-255, per channel.
            pixel_std: the same.
            queries: what is asked for objects of any class.
            class_query: what is asked for a class, {} for its name.
            pairs_at_once: most pairs of image and text in the fusion at test time.
            criterion: the losses; None: with the public code's weights.
            target_checks: knows how the data sets number their classes; None: as the vocabulary.

        Raises:
            OVDError: one of ``text_backbone`` and ``fusion`` without the other, or classes for a
                model without text.
        """
        super().__init__(target_checks)
        if (text_backbone is None) != (fusion is None):
            raise OVDError("text_backbone and fusion belong together: give both or neither.")
        self.backbone = backbone
        self.levels = levels
        self.transformer = transformer
        self.text_backbone = text_backbone
        self.fusion = fusion
        self.heads = heads
        self.merging = merging
        if criterion is None:
            kind = "focal" if fusion is None else "soft_token"
            criterion = SetCriterion(matcher=HungarianMatcher(), kind=kind)
        self.criterion = criterion
        self.in_features = list(in_features)
        self.queries = tuple(queries)
        self.class_query = class_query
        self.pairs_at_once = pairs_at_once
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self._set_vocabulary(vocabulary)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The parts that ``MODEL.MAVL``, ``MODEL.BACKBONE`` and ``MODEL.TEXT_BACKBONE`` name.

        Raises:
            OVDError: unknown parts, or parts that do not fit.
        """
        keys, backbone = cfg.MODEL.MAVL, build_backbone(cfg)
        shapes = backbone.output_shape()
        for name in keys.IN_FEATURES:
            if name not in shapes:
                raise OVDError(
                    f"MODEL.MAVL.IN_FEATURES names {name!r}, which the backbone does not give: "
                    f"it gives {', '.join(shapes)}."
                )
        inner = {"dim": keys.DIM, "hidden": keys.HIDDEN, "dropout": keys.DROPOUT}
        text_backbone = fusion = None
        if keys.LANGUAGE:
            text_backbone = build_text_backbone(cfg)
            fusion = LateFusion(
                text_backbone.dim, layers=keys.FUSION_LAYERS, heads=keys.FUSION_HEADS, **inner
            )
        return {
            "backbone": backbone,
            "levels": FeatureLevels(
                [shapes[name].channels for name in keys.IN_FEATURES],
                dim=keys.DIM, levels=keys.LEVELS, norm_groups=keys.NORM_GROUPS,
            ),
            "transformer": DeformableTransformer(
                queries=keys.OBJECT_QUERIES, heads=keys.HEADS, levels=keys.LEVELS,
                points=keys.POINTS, encoder_layers=keys.ENCODER_LAYERS,
                decoder_layers=keys.DECODER_LAYERS, all_layers=not keys.LANGUAGE, **inner,
            ),
            "text_backbone": text_backbone,
            "fusion": fusion,
            "heads": QueryHeads(keys.DIM, (keys.WORD_COLUMNS if keys.LANGUAGE else 1) + 1),
            "merging": QueryMerging(
                score_threshold=keys.SCORE_THRESH_TEST,
                boxes_per_query=keys.BOXES_PER_QUERY_TEST,
                nms_threshold=keys.NMS_THRESH_TEST,
                max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
                whole_pixels=keys.WHOLE_PIXELS_TEST,
            ),
            "criterion": _criterion(keys),
            "vocabulary": configured_vocabulary(
                cfg.MODEL.OPEN_VOCAB.VOCABULARY, cfg.DATASETS.TRAIN, cfg.DATASETS.NOVEL_NAMES
            ),
            "in_features": keys.IN_FEATURES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "queries": keys.QUERIES_TEST,
            "class_query": keys.CLASS_QUERY,
            "pairs_at_once": keys.PAIRS_AT_ONCE,
            "target_checks": TargetChecks(cfg),
        }  # fmt: skip

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.pixel_mean.device

    @property
    def detection_choice(self) -> QueryMerging:
        """See :class:`~ovd_d2.modeling.detection_choice.DetectionChoice`."""
        return self.merging

    def _set_vocabulary(self, vocabulary: VocabularyLike | None) -> None:
        classes = None if vocabulary is None else as_vocabulary(vocabulary)
        asked = []
        if classes is not None:
            if self.fusion is None:
                raise OVDError(
                    "A MAVL without language (MODEL.MAVL.LANGUAGE False) tells no classes apart: "
                    "set MODEL.OPEN_VOCAB.VOCABULARY later, or set_vocabulary(None)."
                )
            asked = [fill(self.class_query, name) for name in classes.names]
        self.vocabulary: Vocabulary | None = classes
        self._class_queries: list[str] = asked
        self._encoded.clear()

    # The image, once.

    def read_images(self, pixels: Sequence[Tensor]) -> ImageQueries:
        """What the decoder finds in N images, whatever will be asked.

        Args:
            pixels: N of (C, H, W), 0-255; smaller ones are padded to the largest.
        """
        images = [(image.to(self.device) - self.pixel_mean) / self.pixel_std for image in pixels]
        batch = ImageList.from_tensors(images, self.backbone.size_divisibility)
        padding = torch.ones_like(batch.tensor[:, 0], dtype=torch.bool)
        for one, (height, width) in zip(padding, batch.image_sizes):
            one[:height, :width] = False
        maps = self.backbone(batch.tensor)
        return self.transformer(*self.levels([maps[name] for name in self.in_features], padding))

    # The text, and both together.

    def read_texts(self, tokens: CaptionTokens) -> EncodedText:
        """Token features of P texts.

        Raises:
            OVDError: the model has no text.
        """
        self._check_reads_text()
        tokens = tokens.to(self.device)
        return EncodedText(self.text_backbone(tokens), tokens.mask)

    def _check_reads_text(self) -> None:
        if self.text_backbone is None:
            raise OVDError("A MAVL without language (MODEL.MAVL.LANGUAGE False) reads no captions.")

    def predict_queries(
        self,
        image: ImageQueries,
        text: EncodedText | None,
        *,
        every_pair: bool = False,
        last_layer_only: bool = False,
    ) -> Outputs:
        """What the object queries say to a text.

        Args:
            image: of N images.
            text: of P texts; None: the model has no text.
            every_pair: False: P = N, image i meets text i, B = N. True: B = N * P, pair (i, p) at
                i * P + p.
            last_layer_only: what the layers before say is not wanted.

        Returns:
            ``pred_logits`` (B, Q, T + 1), the last column "no object", and ``pred_boxes``
            (B, Q, 4), of the last layer; ``aux_outputs``, such dicts of the layers before, first
            one first.
        """
        layers, references = image.layers, image.references
        if text is not None:
            queries, words, mask = layers[-1], text.words, text.mask
            if every_pair:
                number = len(image)
                queries = queries.repeat_interleave(len(text), dim=0)
                references = references.repeat_interleave(len(text), dim=0)
                words, mask = words.repeat(number, 1, 1), mask.repeat(number, 1)
            layers = self.fusion(queries, words, mask)
        layers = layers[-1:] if last_layer_only else layers
        outputs = [
            {"pred_logits": logits, "pred_boxes": boxes}
            for logits, boxes in zip(*self.heads(layers, references))
        ]
        return {**outputs[-1], "aux_outputs": outputs[:-1]}

    # Training.

    def losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """See the class.

        Raises:
            OVDError: an image has no caption, or boxes that belong to no phrase of it.
        """
        targets = [sample["instances"].to(self.device) for sample in batched_inputs]
        image = self.read_images([sample["image"] for sample in batched_inputs])
        boxes = [_relative_boxes(rows) for rows in targets]
        if self.fusion is None:
            maps = [torch.ones_like(one[:, :1], dtype=torch.bool) for one in boxes]
            return self.criterion(self.predict_queries(image, None), maps, boxes)
        captions = [self._training_caption(sample) for sample in batched_inputs]
        self._check_phrases(batched_inputs, targets)
        tokens = self.text_backbone.tokenizer([one.caption for one in captions], truncate=True)
        maps = [
            caption.token_map(offsets).to(self.device)[rows.gt_phrases]
            for caption, offsets, rows in zip(captions, tokens.offsets, targets)
        ]
        return self.criterion(self.predict_queries(image, self.read_texts(tokens)), maps, boxes)

    def _training_caption(self, sample: dict[str, Any]) -> TokenSpans:
        caption = self._caption_of(sample)
        if caption is None:
            raise OVDError(
                f"{sample.get('file_name', 'A training image')} has no caption, and MAVL learns "
                "from grounded captions: name data sets of them in DATASETS.TRAIN and set "
                "INPUT.MAPPER GroundingMapper, or set MODEL.MAVL.LANGUAGE False."
            )
        return caption

    # Detection.

    @torch.no_grad()
    def ask(self, image: ImageQueries, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Boxes for each of P texts about each of N images; of a model without text, for one.

        Args:
            image: of :meth:`read_images`.
            texts: such as "all objects"; what they say is encoded once.

        Returns:
            (N, P, Q, 4) boxes and (N, P, Q) scores in 0..1, in the order of the object queries.
        """
        if self.fusion is None:
            groups: list[EncodedText | None] = [None]
        else:
            groups = self._in_groups(tuple(texts), max(self.pairs_at_once // len(image), 1))
        boxes, scores = [], []
        for group in groups:
            found = self.predict_queries(image, group, every_pair=True, last_layer_only=True)
            shape = (len(image), -1)
            boxes.append(found["pred_boxes"].unflatten(0, shape))
            objects = 1 - found["pred_logits"].float().softmax(dim=-1)[..., -1]
            scores.append(objects.unflatten(0, shape))
        return torch.cat(boxes, dim=1), torch.cat(scores, dim=1)

    def _in_groups(self, texts: tuple[str, ...], size: int) -> list[EncodedText]:
        """Texts, ``size`` at a time, each encoded once as long as the weights stay."""
        new = [text for text in dict.fromkeys(texts) if text not in self._encoded]
        for start in range(0, len(new), size):
            group = new[start : start + size]
            encoded = self.read_texts(self.text_backbone.tokenizer(group))
            for text, words, mask in zip(group, encoded.words, encoded.mask):
                self._encoded[text] = words[mask]
        rows = [self._encoded[text] for text in texts]
        return [_padded(rows[start : start + size]) for start in range(0, len(rows), size)]

    def _before_classes(self) -> None:
        if self.vocabulary is not None:  # else it finds objects of any class
            super()._before_classes()

    def _detect_samples(self, samples: list[dict[str, Any]]) -> list[Instances]:
        """See the base class. Boxes are merged in the frame in which they are wanted."""
        image = self.read_images([sample["image"] for sample in samples])
        caption = self._caption_of(samples[0])
        if caption is not None:
            boxes, scores = self._phrases(image, caption)
            groups: Sequence[int] | None = range(len(caption))
        elif self.vocabulary is not None:
            boxes, scores = self.ask(image, self._class_queries)
            groups = range(len(self.vocabulary))
        else:
            boxes, scores = self.ask(image, self.queries)
            groups = None
        found = []
        for sample, of_image, rated in zip(samples, boxes, scores):
            height, width = sample["image"].shape[-2:]
            size = sample.get("height", height), sample.get("width", width)
            found.append(_instances(*self.merging(of_image, rated, size, groups), size))
        return found

    def _phrases(self, image: ImageQueries, caption: TokenSpans) -> tuple[Tensor, Tensor]:
        """(N, P, Q, 4) boxes and (N, P, Q) scores of the P phrases of a caption. A phrase behind
        the last word column scores 0."""
        self._check_reads_text()
        tokens = self.text_backbone.tokenizer([caption.caption], truncate=True)
        text = self.read_texts(tokens)
        found = self.predict_queries(image, text, every_pair=True, last_layer_only=True)
        words = found["pred_logits"].float().softmax(dim=-1)[..., :-1]  # (N, Q, T)
        columns = caption.token_map(tokens.offsets[0])[:, : words.shape[-1]].to(words)
        scores = torch.einsum("nqt,pt->npq", words[..., : columns.shape[1]], columns)
        boxes = found["pred_boxes"][:, None].expand(-1, len(caption), -1, -1)
        return boxes, scores


def _padded(rows: Sequence[Tensor]) -> EncodedText:
    """P texts together, each a (Lp, Ct) of its own length."""
    lengths = torch.tensor([len(one) for one in rows], device=rows[0].device)
    words = pad_sequence(list(rows), batch_first=True)
    return EncodedText(words, torch.arange(words.shape[1], device=words.device) < lengths[:, None])


def _criterion(keys: CfgNode) -> SetCriterion:
    """The losses that ``MODEL.MAVL`` asks for."""
    class_cost, l1_cost, giou_cost = keys.MATCH_COSTS
    token_weight, l1_weight, giou_weight = keys.LOSS_WEIGHTS
    return SetCriterion(
        matcher=HungarianMatcher(class_cost=class_cost, l1_cost=l1_cost, giou_cost=giou_cost),
        kind="soft_token" if keys.LANGUAGE else "focal",
        no_object_weight=keys.NO_OBJECT_WEIGHT,
        token_weight=token_weight,
        l1_weight=l1_weight,
        giou_weight=giou_weight,
    )


def _relative_boxes(rows: Instances) -> Tensor:
    """(Gi, 4) cx cy w h in 0..1 of ``gt_boxes``."""
    height, width = rows.image_size
    corners = rows.gt_boxes.tensor
    return box_convert(corners / corners.new_tensor([width, height] * 2), "xyxy", "cxcywh")


def _instances(boxes: Tensor, scores: Tensor, groups: Tensor, size: tuple[int, int]) -> Instances:
    """The part inside the image of each box, of those that have one."""
    found = Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=groups)
    found.pred_boxes.clip(size)
    return found[found.pred_boxes.nonempty()]
