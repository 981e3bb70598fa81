"""GLIP: detection as phrase grounding, with image and text fused in the head.

Letters: N images, P captions, L tokens, Gi targets of image i, R detections, K classes.

Source: Li et al. 2022, "Grounded Language-Image Pre-training".
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from ovd_d2.errors import OVDError
from ovd_d2.language import Vocabulary, VocabularyLike, as_vocabulary, configured_vocabulary
from ovd_d2.language.caption_prompts import CaptionPrompts, Prompt, read_name_prompts
from ovd_d2.modeling.dense_heads import Candidates, GroundingHead, build_grounding_head
from ovd_d2.modeling.target_checks import EVALUATION, TargetChecks
from ovd_d2.modeling.text_backbone import build_text_backbone
from ovd_d2.structures.grounding import TokenSpans


@dataclass
class _Encoded:
    """Captions as the head reads them: ``text`` (P, L, D), ``mask`` (P, L) bool, and per caption
    its token map (phrases, L) bool and the class number of each phrase."""

    text: Tensor
    mask: Tensor
    token_maps: list[Tensor]
    class_numbers: list[Tensor]


@META_ARCH_REGISTRY.register()
class GLIP(nn.Module):
    """An image, a caption, and which box belongs to which words of it.

    Input: Detectron2's list of dicts. With ``caption``, a :class:`TokenSpans` of P phrases, an
    image is grounded: ``instances`` has ``gt_phrases`` (Gi,) int64 in [0, P) in training, and
    ``pred_classes`` are phrases. Without it the classes of the vocabulary are looked for:
    ``gt_classes``, and a caption of class names is made in here. Both kinds may share a batch.

    Training returns ``loss_token``, ``loss_box_reg`` and ``loss_centerness``; inference
    ``[{"instances": ...}]`` with ``pred_boxes``, ``scores`` in 0..1 and ``pred_classes``, best
    first. A vocabulary of any size is split into as many captions as it needs; backbone and FPN
    run once per image for all of them. What comes out for an image does not depend on the images
    it is batched with.
    """

    reads_captions = True

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
        super().__init__()
        self.backbone = backbone
        self.text_backbone = text_backbone
        self.head = head
        self.anchor_generator = anchor_generator
        self.prompts = prompts
        self.in_features = list(in_features)
        self.names_per_caption = names_per_caption
        self.max_negatives = max_negatives
        self.all_negatives_probability = all_negatives_probability
        self.pairs_at_once = pairs_at_once
        self.target_checks = TargetChecks() if target_checks is None else target_checks
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.prompt_offset = None
        if tune == "prompt":
            most = text_backbone.tokenizer.max_tokens
            self.prompt_offset = nn.Parameter(torch.zeros(most, text_backbone.dim))
        self._train_only(tune)
        self._encoded: dict[int, list[_Encoded]] = {}
        self.register_load_state_dict_post_hook(_forget_encoded)
        self._set_vocabulary(vocabulary)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The parts that ``MODEL.GLIP``, ``MODEL.BACKBONE`` and ``MODEL.TEXT_BACKBONE`` name.

        Raises:
            OVDError: unknown parts, or parts that do not fit.
        """
        keys = cfg.MODEL.GLIP
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        missing = [name for name in keys.IN_FEATURES if name not in shapes]
        if missing:
            raise OVDError(
                f"MODEL.GLIP.IN_FEATURES names {missing[0]!r}, which the backbone does not give: "
                f"it gives {', '.join(shapes)}."
            )
        text_backbone = build_text_backbone(cfg)
        shapes = [shapes[name] for name in keys.IN_FEATURES]
        anchors = build_anchor_generator(cfg, shapes)
        if set(anchors.num_anchors) != {1}:
            raise OVDError(
                f"MODEL.ANCHOR_GENERATOR makes {max(anchors.num_anchors)} anchors per location, "
                "GLIP has one: give one of SIZES per level, and ASPECT_RATIOS [[1.0]]."
            )
        return {
            "backbone": backbone,
            "text_backbone": text_backbone,
            "head": build_grounding_head(cfg, shapes, text_backbone, backbone.size_divisibility),
            "anchor_generator": anchors,
            "prompts": CaptionPrompts(
                text_backbone.tokenizer, prompts=read_name_prompts(keys.NAME_PROMPTS)
            ),
            "vocabulary": configured_vocabulary(
                cfg.MODEL.OPEN_VOCAB.VOCABULARY, cfg.DATASETS.TRAIN, cfg.DATASETS.NOVEL_NAMES
            ),
            "in_features": keys.IN_FEATURES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "names_per_caption": keys.NAMES_PER_CAPTION,
            "max_negatives": keys.MAX_NEGATIVES,
            "all_negatives_probability": keys.ALL_NEGATIVES_PROB,
            "pairs_at_once": keys.PAIRS_AT_ONCE,
            "tune": keys.TUNE,
            "target_checks": TargetChecks(cfg),
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def set_vocabulary(self, vocabulary: VocabularyLike | None) -> None:
        """Swaps the classes to look for.

        Args:
            vocabulary: K classes, in any number; None: none.

        Raises:
            OVDError: names that cannot be had, or one that no caption can hold; nothing changes
                then.
        """
        self._set_vocabulary(vocabulary)
        self.target_checks.honoured.add(EVALUATION)  # the caller knows what is asked for

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

    def train(self, mode: bool = True) -> "GLIP":
        self._encoded.clear()  # text features of weights that may change now
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> "GLIP":
        self._encoded.clear()  # they stay where the model was
        return super()._apply(*args, **kwargs)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        return self.losses(batched_inputs) if self.training else self.inference(batched_inputs)

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
        captions = [_caption_of(sample) for sample in batched_inputs]
        if any(c is not None and not t.has("gt_phrases") for c, t in zip(captions, targets)):
            raise OVDError(
                "An image has a caption, but its boxes do not say of which phrase they are "
                "(gt_phrases): set INPUT.MAPPER GroundingMapper for data sets of captions."
            )
        plain = [i for i, caption in enumerate(captions) if caption is None]
        if not plain:
            return captions, targets
        vocabulary = self._present_vocabulary()
        rows = [targets[i] for i in plain]
        self.target_checks.before_training(rows, vocabulary, {})
        rows = self.target_checks.class_numbers.of_vocabulary(rows, vocabulary)
        for i, boxes in zip(plain, rows):
            prompt, kept = self.prompts.for_training(
                boxes.gt_classes, vocabulary.names, negatives=self._labelled(vocabulary),
                max_negatives=self.max_negatives,
                all_negatives_probability=self.all_negatives_probability,
            )  # fmt: skip
            boxes = boxes[kept]
            boxes.gt_phrases = prompt.places(boxes.gt_classes)
            captions[i], targets[i] = prompt.spans, boxes
        return captions, targets

    @staticmethod
    def _labelled(vocabulary: Vocabulary) -> Tensor:
        """Classes that are known to be absent where they have no box: novel ones may be there."""
        return torch.tensor([k for k, novel in enumerate(vocabulary.is_novel) if not novel])

    def _present_vocabulary(self) -> Vocabulary:
        if self.vocabulary is None:
            raise OVDError(
                "The model has no classes yet (MODEL.OPEN_VOCAB.VOCABULARY later): call "
                "set_vocabulary first, or give every image a caption."
            )
        return self.vocabulary

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """See the class."""
        groups: dict[Any, list[int]] = {}
        for i, sample in enumerate(batched_inputs):  # none is padded because of another
            kind = i if "caption" in sample else "classes"
            groups.setdefault((kind, tuple(sample["image"].shape)), []).append(i)
        if any(kind == "classes" for kind, _ in groups):
            self.target_checks.before_inference(self._present_vocabulary())
        results: dict[int, Instances] = {}
        for members in groups.values():
            samples = [batched_inputs[i] for i in members]
            encoded = self._given(samples[0]) if "caption" in samples[0] else None
            found = self._detect([sample["image"] for sample in samples], encoded)
            results.update(zip(members, found))
        return [
            {
                "instances": detector_postprocess(
                    results[i],
                    sample.get("height", results[i].image_size[0]),
                    sample.get("width", results[i].image_size[1]),
                )
            }
            for i, sample in enumerate(batched_inputs)
        ]

    def _detect(self, pixels: list[Tensor], captions: list[_Encoded] | None) -> list[Instances]:
        """Detections in images of one size, in the frame of that size.

        Args:
            pixels: N of (C, H, W).
            captions: what to look for, in groups; None: the vocabulary.
        """
        images = self._preprocess(pixels)
        features = self._features(images)
        anchors = self.anchor_generator(features)
        if captions is None:
            captions = self._vocabulary_in_groups(max(self.pairs_at_once // len(pixels), 1))
        levels = self.head.encode_images(features)
        found = []
        for group in captions:
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

    def _given(self, sample: dict[str, Any]) -> list[_Encoded]:
        """The caption of one image."""
        caption = _caption_of(sample)
        return [self._encode([caption], [torch.arange(len(caption))])]

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

    def _preprocess(self, pixels: list[Tensor]) -> ImageList:
        pixels = [(image.to(self.device) - self.pixel_mean) / self.pixel_std for image in pixels]
        return ImageList.from_tensors(pixels, self.backbone.size_divisibility)

    def _features(self, images: ImageList) -> list[Tensor]:
        maps = self.backbone(images.tensor)
        return [maps[name] for name in self.in_features]

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


def _forget_encoded(model: GLIP, _: Any) -> None:
    """A hook: the captions were encoded with other weights."""
    model._encoded.clear()


def _caption_of(sample: dict[str, Any]) -> TokenSpans | None:
    caption = sample.get("caption")
    if caption is None or isinstance(caption, TokenSpans):
        return caption
    raise OVDError(
        f"The caption of {sample.get('file_name', 'an image')} is a {type(caption).__name__}, but "
        "GLIP needs one whose phrases are marked (TokenSpans): set INPUT.MAPPER GroundingMapper."
    )
