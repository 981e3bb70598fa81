"""DetCLIP: detection by concepts that are encoded in parallel, trained on boxes, grounded captions
and image-text pairs.

Letters: N images, A anchors, K classes, M concepts, D embedding width, Q regions, W words of a text
(its caption and noun phrases), Gi targets of image i.

Sources: Yao et al. 2022, "DetCLIP: Dictionary-Enriched Visual-Concept Paralleled Pre-training for
Open-world Detection"; Yao et al. 2023, "DetCLIPv2: Scalable Open-Vocabulary Object Detection
Pre-training via Word-Region Alignment". No code of the authors is public.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.backbone import Backbone
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from torch import Tensor, nn

from ovd_d2.encoders.text_towers import build_text_tower
from ovd_d2.errors import OVDError
from ovd_d2.language import (
    ClassEmbedder,
    TextEmbeddings,
    Vocabulary,
    VocabularyLike,
    as_vocabulary,
)
from ovd_d2.language.concept_dictionary import ConceptDictionary
from ovd_d2.language.concept_prompts import (
    ConceptPrompts,
    Concepts,
    labelled_dictionary,
    merged,
    names_in,
)
from ovd_d2.language.example_rows import Mixing
from ovd_d2.language.prompts import clean_name
from ovd_d2.modeling.box_vectors import vectors_of_boxes
from ovd_d2.modeling.concept_text import ConceptText, OwnTextTower
from ovd_d2.modeling.dense_heads import (
    ConceptHead,
    ConceptInference,
    ConceptLoss,
    RegionChoice,
    build_concept_head,
)
from ovd_d2.modeling.dense_heads.candidates import clip_to_image
from ovd_d2.modeling.target_checks import TargetChecks
from ovd_d2.modeling.tuning import LORA
from ovd_d2.modeling.word_region_learning import WordRegionLearning
from ovd_d2.structures.grounding import TokenSpans

from .kinds_of_samples import DETECTION, GROUNDING, KINDS, PAIRS, by_kind, check_same_kinds
from .one_stage import OneStageDetector, one_stage_parts


@META_ARCH_REGISTRY.register()
class DetCLIP(OneStageDetector):
    """An image, any number of concepts, and a dot product of every region with every concept.

    Input: Detectron2's list of dicts. In training there are three kinds of samples, each told by
    its fields:

    * boxes of classes: ``instances`` with ``gt_boxes`` and ``gt_classes`` (Gi,) int64, and, if
      classes without a box may be there, ``absent_classes`` (n,) int64, those that are not;
    * boxes of phrases: ``instances`` with ``gt_boxes`` and ``gt_phrases`` (Gi,) int64, and
      ``caption``, a :class:`TokenSpans`;
    * pairs: no ``instances``, but ``concepts``, a list of the caption and its noun phrases.

    Training returns ``loss_alignment``, ``loss_box_reg`` and ``loss_centerness`` for the first
    kind, ``loss_alignment`` for the second, ``loss_word_region`` for the third. A batch may hold
    several kinds, but the same ones in every process. Inference returns ``[{"instances": ...}]``
    with ``pred_boxes``, ``scores`` in 0..1 and ``pred_classes``, best first: classes of the
    vocabulary, or phrases where a sample has a ``caption``. What comes out for an image does not
    depend on the images it is batched with, and what it costs hardly on the vocabulary.
    """

    # AP_base / AP_novel on half of val, novel classes by 1 example: 9.4 / 4.4, by 5: 6.8 / 6.0;
    # with the usual mixing 6.9 / 4.2 and 4.7 / 5.7; names alone: 11.2 / 3.3.
    example_mixing = Mixing(strength=0.2, own_name=0.5)
    recipes: ClassVar[dict[str, tuple]] = {
        # the paper's rates on ODinW
        "full": ("SOLVER.BASE_LR", 4e-5, "SOLVER.LR_MULTIPLIERS", [["text.", 0.01]]),
        "frozen": ("SOLVER.BASE_LR", 2e-4, "MODEL.TUNE.FROZEN", ["backbone.", "text."]),
        "linear": ("MODEL.TUNE.ONLY", ["head.embedding.", "head.box_deltas.", "head.centerness."]),
        "lora": ("SOLVER.BASE_LR", 2e-4, *LORA),
    }

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        text: ConceptText,
        head: ConceptHead,
        anchor_generator: nn.Module,
        prompts: ConceptPrompts,
        loss: ConceptLoss,
        region_choice: RegionChoice,
        word_regions: WordRegionLearning,
        detections: ConceptInference,
        vocabulary: VocabularyLike | None,
        in_features: Sequence[str],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        detection_concepts: int = 150,
        grounding_concepts: int = 100,
        localize_grounding: bool = False,
        target_checks: TargetChecks | None = None,
    ) -> None:
        """
        Args:
            backbone: images -> feature maps, ``in_features`` among them.
            text: texts of concepts -> unit vectors.
            head: feature maps -> regions.
            anchor_generator: Detectron2's, one anchor per location.
            prompts: texts of names, and negatives.
            loss: of boxes.
            region_choice: which regions of a pair meet its words.
            word_regions: the loss of pairs.
            detections: from regions to detections.
            vocabulary: the K classes to start with; None: none before :meth:`set_vocabulary`.
            in_features: names of the feature maps, finest first.
            pixel_mean: of the pixels as they come, 0-255, per channel.
            pixel_std: the same.
            detection_concepts: concepts of an image of classes, with negatives.
            grounding_concepts: the same of an image of phrases.
            localize_grounding: boxes of phrases train boxes and centerness too.
            target_checks: knows how the data sets number their classes; None: as the vocabulary.
        """
        super().__init__(
            backbone=backbone,
            anchor_generator=anchor_generator,
            in_features=in_features,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
            target_checks=target_checks,
        )
        self.text = text
        self.head = head
        self.prompts = prompts
        self.loss = loss
        self.region_choice = region_choice
        self.word_regions = word_regions
        self.detections = detections
        self.detection_concepts = detection_concepts
        self.grounding_concepts = grounding_concepts
        self.localize_grounding = localize_grounding
        self.class_embedder: ClassEmbedder = OwnTextTower(text, prompts)
        self._given: TextEmbeddings | None = None
        self._set_vocabulary(vocabulary)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The parts that ``MODEL.DETCLIP`` and ``MODEL.BACKBONE`` name.

        Raises:
            OVDError: unknown parts, or parts that do not fit.
        """
        keys = cfg.MODEL.DETCLIP
        parts, shapes = one_stage_parts(cfg, keys.IN_FEATURES, "MODEL.DETCLIP")
        tower = build_text_tower(
            keys.TEXT_TOWER, keys.EMBED_DIM, width=keys.TEXT.WIDTH, heads=keys.TEXT.HEADS,
            layers=keys.TEXT.LAYERS, context=keys.MAX_TOKENS, cut=True, key="MODEL.DETCLIP",
        )  # fmt: skip
        dictionary = ConceptDictionary.load(keys.DICTIONARY)
        if not keys.DICTIONARY and parts["vocabulary"] is not None:
            dictionary = labelled_dictionary(parts["vocabulary"])
        return {
            **parts,
            **build_concept_head(cfg, shapes, keys.EMBED_DIM),
            "text": ConceptText(tower),
            "prompts": ConceptPrompts(dictionary, enrich=keys.ENRICH),
            "word_regions": WordRegionLearning(
                match=keys.MATCH,
                match_temperature=keys.MATCH_TEMPERATURE,
                direction=keys.DIRECTION,
                temperature=keys.PAIR_TEMPERATURE,
                label_smoothing=keys.LABEL_SMOOTHING,
                weight=keys.PAIR_LOSS_WEIGHT,
            ),
            "detection_concepts": keys.CONCEPTS_DETECTION,
            "grounding_concepts": keys.CONCEPTS_GROUNDING,
            "localize_grounding": keys.LOCALIZE_GROUNDING,
        }

    def set_trained_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Gives the definitions that the model was trained with to a model that was built without
        classes and a dictionary, for phrases and names that bring none."""
        if not len(self.prompts.dictionary):
            self.prompts.dictionary = labelled_dictionary(vocabulary)
            self._encoded.clear()

    @property
    def detection_choice(self) -> ConceptInference:
        """See :class:`~ovd_d2.modeling.detection_choice.DetectionChoice`."""
        return self.detections

    def _set_vocabulary(self, vocabulary: VocabularyLike | None) -> None:
        classes = None if vocabulary is None else as_vocabulary(vocabulary)
        given = None
        if classes is not None:
            self.prompts.for_vocabulary(classes)  # raises for a name that is none
            if not isinstance(self.class_embedder, OwnTextTower):  # our own wait for the weights
                given = self.class_embedder.embed(classes)
                self._check_width(given)
        self.vocabulary: Vocabulary | None = classes
        self._given = given
        self._encoded.clear()

    def _check_width(self, embeddings: TextEmbeddings) -> None:
        width = self.head.embedding.out_channels
        if embeddings.dim != width:
            raise OVDError(
                f"class embeddings of {embeddings.encoder_id} have {embeddings.dim} values, "
                f"regions of this model have {width}: give embeddings of its own text tower."
            )

    def losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """See the class."""
        of_kind = by_kind(batched_inputs)
        boxes = {
            kind: self._box_targets(kind, of_kind[kind])
            for kind in (DETECTION, GROUNDING)
            if kind in of_kind
        }
        check_same_kinds(of_kind)
        found: dict[str, Tensor] = {}
        for kind in KINDS:
            if kind in of_kind:
                losses = (
                    self._pair_losses(of_kind[kind])
                    if kind == PAIRS
                    else self._box_losses(kind, of_kind[kind], *boxes[kind])
                )
                for name, value in losses.items():
                    found[name] = found[name] + value if name in found else value
        return found

    def _box_targets(
        self, kind: str, samples: list[dict[str, Any]]
    ) -> tuple[list[Instances], list[Concepts], list[list[str]], list[set[str] | None]]:
        """Per image its targets, its concepts, the concept of each target, and the names of which
        it is known whether the image shows them; None: all, but for unboxed phrases of its own."""
        known: list[set[str] | None] = [None] * len(samples)
        if kind == DETECTION:
            vocabulary = self._present_vocabulary()
            targets, negatives = self._class_targets(samples)
            concepts = [
                self.prompts.of_classes(
                    t.gt_classes, vocabulary, negatives=absent, most=self.detection_concepts
                )
                for t, absent in zip(targets, negatives)
            ]
            names = [[vocabulary.names[k] for k in t.gt_classes.tolist()] for t in targets]
            for image, (sample, absent) in enumerate(zip(samples, negatives)):
                if "absent_classes" in sample:
                    listed = (vocabulary.names[k] for k in absent.tolist())
                    known[image] = {clean_name(name) for name in (*names[image], *listed)}
        else:
            targets = [sample["instances"].to(self.device) for sample in samples]
            self._check_phrases(samples, targets)
            captions = [self._caption_of(sample) for sample in samples]
            phrases = [caption.phrases() for caption in captions]
            concepts = [self._phrase_concepts(*pair) for pair in zip(samples, captions)]
            names = [[p[k] for k in t.gt_phrases.tolist()] for p, t in zip(phrases, targets)]
        return targets, concepts, [[clean_name(name) for name in row] for row in names], known

    def _phrase_concepts(self, sample: dict[str, Any], caption: TokenSpans) -> Concepts:
        try:
            return self.prompts.of_phrases(
                caption.phrases(), most=self.grounding_concepts, caption=caption.caption
            )
        except OVDError as error:  # nothing is left of a phrase
            name = sample.get("file_name", "an image")
            raise OVDError(f"The caption of {name}: {error}") from error

    def _box_losses(
        self,
        kind: str,
        samples: list[dict[str, Any]],
        targets: list[Instances],
        concepts: list[Concepts],
        names: list[list[str]],
        known: list[set[str] | None],
    ) -> dict[str, Tensor]:
        of_batch = merged(comm.all_gather(merged(concepts)))
        places = {name: place for place, name in enumerate(of_batch)}
        # Without any concept the text side still needs its gradient.
        rows = self.text.of_all_processes(list(of_batch.values()) or ["a"])
        counted = torch.ones(len(samples), len(places), dtype=torch.bool)
        for image, of_image in enumerate(known):
            if of_image is not None:
                counted[image] = False
                counted[image, [places[name] for name in of_image & places.keys()]] = True
        if kind == GROUNDING:  # what a caption says may be visible without a box
            for image, (sample, boxed) in enumerate(zip(samples, names)):
                said = names_in(self._caption_of(sample)).difference(boxed)
                counted[image, [places[name] for name in said & places.keys()]] = False
        images = self._preprocess([sample["image"] for sample in samples])
        features = self._features(images)
        outputs = self.head(features)
        columns = [[places[name] for name in of_image] for of_image in names]
        losses = self.loss(
            self.anchor_generator(features), outputs, rows[: len(places)], self.head.bias,
            [t.gt_boxes.tensor for t in targets],
            [torch.tensor(c, dtype=torch.int64, device=self.device) for c in columns],
            counted.to(self.device),
            localize=kind == DETECTION or self.localize_grounding,
        )  # fmt: skip
        return _with_gradient_path(losses, outputs, rows)

    def _pair_losses(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        texts = [list(dict.fromkeys(map(clean_name, s["concepts"]))) for s in samples]
        of_batch = list(dict.fromkeys(text for words in texts for text in words))
        places = {text: place for place, text in enumerate(of_batch)}
        own = [torch.tensor([places[w] for w in words], device=self.device) for words in texts]
        concepts = self.text([self.prompts.text(text) for text in of_batch])
        images = self._preprocess([sample["image"] for sample in samples])
        features = self._features(images)
        outputs = self.head(features)
        anchors: list[Boxes] = self.anchor_generator(features)
        chosen, mask, areas = self.region_choice(anchors, outputs, concepts, self.head.bias, own)
        rows = torch.arange(len(samples), device=self.device)[:, None]
        losses = self.word_regions(
            outputs.regions[rows, chosen], mask, areas, [concepts[rows_] for rows_ in own],
            [words[0] for words in texts],
        )  # fmt: skip
        return _with_gradient_path(losses, outputs, self.head.bias)

    def _detect(self, pixels: list[Tensor], caption: TokenSpans | None) -> list[Instances]:
        """See the base class."""
        images = self._preprocess(pixels)
        features = self._features(images)
        if caption is None:
            concepts = self._class_rows()
        else:
            concepts = self.text.encode([self.prompts.text(p) for p in caption.phrases()])
        return self.detections(
            self.anchor_generator(features), self.head(features), concepts.to(self.device),
            self.head.bias, images.image_sizes,
        )  # fmt: skip

    @torch.no_grad()
    def embed_examples(self, image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`~ovd_d2.modeling.open_vocabulary.SeesExamples`: the regions of the anchors
        that predict the boxes best; centerness weighs what is around."""
        images = self._preprocess([image])
        features = self._features(images)
        outputs, anchors = self.head(features), Boxes.cat(self.anchor_generator(features)).tensor
        predicted = self.detections.box2box_transform.apply_deltas(outputs.box_deltas[0], anchors)
        predicted = clip_to_image(predicted, images.image_sizes[0])
        centerness = outputs.centerness[0].sigmoid()
        return vectors_of_boxes(outputs.regions[0], predicted, centerness, boxes.to(self.device))

    def _class_rows(self) -> Tensor:
        """(K, D) of the vocabulary, encoded once."""
        if "classes" not in self._encoded:
            if self._given is None:
                texts = self.prompts.for_vocabulary(self._present_vocabulary())
                rows = self.text.encode(texts)
            else:
                rows = self._given.embeddings
            self._encoded["classes"] = rows.to(self.device)
        return self._encoded["classes"]


def _with_gradient_path(
    losses: dict[str, Tensor], outputs: Any, *unused: Tensor
) -> dict[str, Tensor]:
    """The losses, with a zero that reaches outputs they do not use: DistributedDataParallel waits
    for the gradients of all parameters."""
    rest = [outputs.box_deltas, outputs.centerness, outputs.quality, *unused]
    zero = sum(x.sum() for x in rest if x is not None) * 0.0
    name = next(iter(losses))
    return {**losses, name: losses[name] + zero}
