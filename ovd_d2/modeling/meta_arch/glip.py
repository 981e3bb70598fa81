"""GLIP: detection as phrase grounding, with image and text fused in the head.

Letters: N images, P captions, L tokens, Gi targets of image i, R detections, K classes.

Source: Li et al. 2022, "Grounded Language-Image Pre-training".
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.backbone import Backbone
from detectron2.structures import Instances
from torch import Tensor, nn

from ovd_d2.errors import OVDError
from ovd_d2.language import Vocabulary, VocabularyLike, as_vocabulary
from ovd_d2.language.caption_prompts import CaptionPrompts, Prompt, read_name_prompts
from ovd_d2.modeling.dense_heads import (
    Candidates,
    GroundingHead,
    GroundingInference,
    build_grounding_head,
)
from ovd_d2.modeling.target_checks import TargetChecks
from ovd_d2.modeling.text_backbone import build_text_backbone
from ovd_d2.modeling.tuning import LORA
from ovd_d2.structures.grounding import TokenSpans

from .one_stage import OneStageDetector, one_stage_parts


@dataclass
class _Encoded:
    """Captions as the head reads them: ``text`` (P, L, D), ``mask`` (P, L) bool, and per caption
    its token map (phrases, L) bool and the class number of each phrase."""

    text: Tensor
    mask: Tensor
    token_maps: list[Tensor]
    class_numbers: list[Tensor]


@META_ARCH_REGISTRY.register()
class GLIP(OneStageDetector):
    """An image, a caption, and which box belongs to which words of it.

    Input: Detectron2's list of dicts. With ``caption``, a :class:`TokenSpans` of P phrases, an
    image is grounded: ``instances`` has ``gt_phrases`` (Gi,) int64 in [0, P) in training, and
    ``pred_classes`` are phrases. Without it the classes of the vocabulary are looked for:
    ``gt_classes``, and a caption of class names is made in here: those of the boxes, and others,
    of ``absent_classes`` (n,) int64 where a sample has that list. Both kinds may share a batch.

    Training returns ``loss_token``, ``loss_box_reg`` and ``loss_centerness``; inference
    ``[{"instances": ...}]`` with ``pred_boxes``, ``scores`` in 0..1 and ``pred_classes``, best
    first. A vocabulary of any size is split into as many captions as it needs; backbone and FPN
    run once per image for all of them. What comes out for an image does not depend on the images
    it is batched with.
    """

    recipes: ClassVar[dict[str, tuple]] = {  # rates: of the paper's appendix and public configs
        "full": ("SOLVER.BASE_LR", 1e-4, "SOLVER.LR_MULTIPLIERS", [["text_backbone.", 0.1]]),
        "frozen": (
            "SOLVER.BASE_LR", 1e-4, "MODEL.TUNE.FROZEN", ["backbone.", "text_backbone."]
        ),
        "linear": ("SOLVER.BASE_LR", 1e-4, "MODEL.GLIP.TUNE", "linear_probe"),
        "prompt": (
            "SOLVER.BASE_LR", 0.05, "SOLVER.WEIGHT_DECAY", 0.25, "MODEL.GLIP.TUNE", "prompt"
        ),
        "lora": ("SOLVER.BASE_LR", 2e-4, *LORA),
    }  # fmt: skip

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        text_backbone: nn.Module,
        head: GroundingHead,
        anchor_generator: nn.Module,
        prompts: CaptionPrompts,
        vocabulary: VocabularyLike | None,
        in_features: Sequence[str],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        names_per_caption: int = 0,
        max_negatives: int = 85,
        all_negatives_probability: float = 0.5,
        pairs_at_once: int = 4,
        tune: str = "full",
        target_checks: TargetChecks | None = None,
    ) -> None:
        """
        Args:
            backbone: images -> feature maps, ``in_features`` among them.
            text_backbone: captions -> token features, see ``text_backbone.registry``.
            head: both -> boxes and which tokens they belong to.
            anchor_generator: Detectron2's, one anchor per location.
            prompts: turns class names into captions.
            vocabulary: the K classes to start with; None: none before :meth:`set_vocabulary`.
            in_features: names of the feature maps, finest first.
            pixel_mean: of the pixels as they come, 0-255, per channel.
            pixel_std: the same.
            names_per_caption: most names in a test caption; 0: as many as fit.
            max_negatives: see :meth:`CaptionPrompts.for_training`.
            all_negatives_probability: see there.
            pairs_at_once: most pairs of image and caption in the head at test time.
            tune: "full"; "linear_probe", the projections behind the head alone; or "prompt", an
                offset of the token features alone, (most tokens, D), zero at first.
            target_checks: knows how the data sets number their classes; None: as the vocabulary.

        Raises:
            OVDError: an unknown ``tune``, or a name that no caption can hold.
        """
        super().__init__(
            backbone=backbone,
            anchor_generator=anchor_generator,
            in_features=in_features,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
            target_checks=target_checks,
        )
        self.text_backbone = text_backbone
        self.head = head
        self.prompts = prompts
        self.names_per_caption = names_per_caption
        self.max_negatives = max_negatives
        self.all_negatives_probability = all_negatives_probability
        self.pairs_at_once = pairs_at_once
        self.prompt_offset = None
        if tune == "prompt":
            most = text_backbone.tokenizer.max_tokens
            self.prompt_offset = nn.Parameter(torch.zeros(most, text_backbone.dim))
        self._train_only(tune)
        self._set_vocabulary(vocabulary)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The parts that ``MODEL.GLIP``, ``MODEL.BACKBONE`` and ``MODEL.TEXT_BACKBONE`` name.

        Raises:
            OVDError: unknown parts, or parts that do not fit.
        """
        keys = cfg.MODEL.GLIP
        parts, shapes = one_stage_parts(cfg, keys.IN_FEATURES, "MODEL.GLIP")
        text_backbone = build_text_backbone(cfg)
        divisibility = parts["backbone"].size_divisibility
        return {
            **parts,
            "text_backbone": text_backbone,
            "head": build_grounding_head(cfg, shapes, text_backbone, divisibility),
            "prompts": CaptionPrompts(
                text_backbone.tokenizer, prompts=read_name_prompts(keys.NAME_PROMPTS)
            ),
            "names_per_caption": keys.NAMES_PER_CAPTION,
            "max_negatives": keys.MAX_NEGATIVES,
            "all_negatives_probability": keys.ALL_NEGATIVES_PROB,
            "pairs_at_once": keys.PAIRS_AT_ONCE,
            "tune": keys.TUNE,
        }

    @property
    def detection_choice(self) -> GroundingInference:
        """See :class:`~ovd_d2.modeling.detection_choice.DetectionChoice`."""
        return self.head.inference

    def _set_vocabulary(self, vocabulary: VocabularyLike | None) -> None:
        classes = None if vocabulary is None else as_vocabulary(vocabulary)
        captions = []
        if classes is not None:
            captions = self.prompts.for_vocabulary(classes.names, self.names_per_caption or None)
        self.vocabulary: Vocabulary | None = classes
        self._captions: list[Prompt] = captions
        self._encoded.clear()

    def cut_to_fit(self, caption: TokenSpans) -> TokenSpans:
        """The caption as it is, or, if it is longer than the text backbone reads, cut behind the
        last phrase up to which all phrases are read whole."""
        text = caption.caption
        offsets = self.text_backbone.tokenizer([text], truncate=True).offsets[0]
        end = int(offsets.max())
        if not text[end:].strip():
            return caption
        ends = [max(e for _, e in phrase) for phrase in caption.spans]
        kept = list(itertools.takewhile(lambda last: last <= end, ends))
        return TokenSpans(text[: max(kept, default=0)], caption.spans[: len(kept)])

    def losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """See the class."""
        captions, targets = self._training_captions(batched_inputs)
        tokens = self.text_backbone.tokenizer([c.caption for c in captions], truncate=True)
        tokens = tokens.to(self.device)
        images = self._preprocess([sample["image"] for sample in batched_inputs])
        features = self._features(images)
        outputs = self.head(
            features, self._text_features(tokens), tokens.mask, image_sizes=images.image_sizes
        )
        gt_tokens = [
            caption.token_map(offsets)[rows.gt_phrases]
            for caption, offsets, rows in zip(captions, tokens.offsets, targets)
        ]
        return self.head.losses(
            self.anchor_generator(features), outputs, [t.gt_boxes.tensor for t in targets],
            gt_tokens, tokens.mask,
        )  # fmt: skip

    def _training_captions(
        self, batched_inputs: list[dict[str, Any]]
    ) -> tuple[list[TokenSpans], list[Instances]]:
        """Per image its caption, and its targets with ``gt_boxes`` and ``gt_phrases``."""
        targets = [sample["instances"].to(self.device) for sample in batched_inputs]
        captions = [self._caption_of(sample) for sample in batched_inputs]
        self._check_phrases(batched_inputs, targets)
        plain = [i for i, caption in enumerate(captions) if caption is None]
        if not plain:
            return captions, targets
        vocabulary = self._present_vocabulary()
        of_classes = self._class_targets([batched_inputs[i] for i in plain])
        for i, boxes, negatives in zip(plain, *of_classes):
            prompt, kept = self.prompts.for_training(
                boxes.gt_classes, vocabulary.names, negatives=negatives,
                max_negatives=self.max_negatives,
                all_negatives_probability=self.all_negatives_probability,
            )  # fmt: skip
            boxes = boxes[kept]
            boxes.gt_phrases = prompt.places(boxes.gt_classes)
            captions[i], targets[i] = prompt.spans, boxes
        return captions, targets

    def _detect(self, pixels: list[Tensor], caption: TokenSpans | None) -> list[Instances]:
        """See the base class."""
        images = self._preprocess(pixels)
        features = self._features(images)
        anchors = self.anchor_generator(features)
        if caption is None:
            groups = self._vocabulary_in_groups(max(self.pairs_at_once // len(pixels), 1))
        else:
            groups = [self._encode([caption], [torch.arange(len(caption))])]
        levels = self.head.encode_images(features)
        found = []
        for group in groups:
            outputs = self.head.read_pairs(levels, group.text, group.mask)
            found.append(
                self.head.candidates(
                    anchors, outputs, images.image_sizes, group.token_maps, group.class_numbers
                )
            )
        joined = [Candidates(*map(torch.cat, zip(*of_image))) for of_image in zip(*found)]
        return self.head.select(joined, images.image_sizes)

    def _vocabulary_in_groups(self, size: int) -> list[_Encoded]:
        """The captions of the vocabulary, ``size`` at a time, encoded once."""
        if size not in self._encoded:
            groups = [self._captions[i : i + size] for i in range(0, len(self._captions), size)]
            self._encoded[size] = [
                self._encode([p.spans for p in group], [p.class_numbers for p in group])
                for group in groups
            ]
        return self._encoded[size]

    def _encode(self, captions: list[TokenSpans], numbers: list[Tensor]) -> _Encoded:
        tokens = self.text_backbone.tokenizer([c.caption for c in captions]).to(self.device)
        return _Encoded(
            self._text_features(tokens), tokens.mask,
            [c.token_map(offsets) for c, offsets in zip(captions, tokens.offsets)],
            [n.to(self.device) for n in numbers],
        )  # fmt: skip

    def _text_features(self, tokens: Any) -> Tensor:
        text = self.text_backbone(tokens)
        if self.prompt_offset is not None:
            text = text + self.prompt_offset[: text.shape[1]]
        return text

    def _train_only(self, tune: str) -> None:
        if tune == "full":
            return
        if tune not in ("linear_probe", "prompt"):
            raise OVDError(f"MODEL.GLIP.TUNE is {tune!r}; it must be full, linear_probe or prompt.")
        self.requires_grad_(False)
        if tune == "prompt":
            self.prompt_offset.requires_grad_(True)
        else:
            for part in self.head.projections():
                part.requires_grad_(True)
