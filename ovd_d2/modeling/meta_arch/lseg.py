"""LSeg: every pixel against the words of a label set that is given at run time.

Letters: N images, K classes, D embedding width, C channels, H and W sides of the image.

Source: Li et al. 2022, "Language-driven Semantic Segmentation"; details as in its public code.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F

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
from ovd_d2.layers.spatial_regulariser import SpatialRegulariser
from ovd_d2.losses import pixel_cross_entropy
from ovd_d2.modeling.class_numbers import IGNORED
from ovd_d2.modeling.classifiers import PixelClassifier
from ovd_d2.modeling.decoders import DPTDecoder
from ovd_d2.modeling.sliding_windows import MultiScaleScores
from ovd_d2.modeling.target_checks import EVALUATION, TargetChecks

_CLASSES_AT_ONCE = 64  # enlarged to the size of the image together


@META_ARCH_REGISTRY.register()
class LSeg(nn.Module):
    """A backbone with a dense decoder; its pixels are compared with words of a frozen text encoder.

    Input: Detectron2's list of dicts with ``image`` (C, H, W), 0-255, and in training ``sem_seg``
    (H, W) int64: class numbers of the training data set, which are mapped to the vocabulary by
    name, or the ignore value. A sample may bring a label set of its own, as few-shot episodes do:
    ``class_names``, K words such as ("others", "cat"); its ``sem_seg`` then counts these.

    Training returns ``loss_sem_seg``, the mean over all pixels with a class of this process; 0 if
    there is none. Inference returns ``[{"sem_seg": (K, height, width) fp32}]``, logits, in the
    frame that ``height`` and ``width`` of a sample name.

    Sides are padded to multiples of the coarsest stride with 0 (black), as in training by the
    public code. At test an image is padded by itself alone, so its scores do not depend on its
    batch. In training images of several sizes are padded to the largest; padded pixels have no
    label, but a ViT's attention and resized positions see them, and batch norms in training mode
    see the whole batch.

    A label set in another order gives the same maps in that order. At test, what is held at once
    is the result and maps of half its sides; with ``multi_scale``, several maps of all classes at
    the size of every scale, or of D channels where there are more classes than that.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        decoder: DPTDecoder,
        head: PixelClassifier,
        in_features: Sequence[str],
        vocabulary: VocabularyLike | None,
        class_embedder: ClassEmbedderLike,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        ignore_value: int = 255,
        multi_scale: MultiScaleScores | None = None,
        target_checks: TargetChecks | None = None,
    ) -> None:
        """
        Args:
            backbone: images -> feature maps, ``in_features`` among them.
            decoder: these -> one map.
            head: that map -> logits.
            in_features: names of the feature maps, finest first.
            vocabulary: the K classes to start with; None: none before :meth:`set_vocabulary`.
            class_embedder: makes (K, D) embeddings of classes; its encoder is no part of the model.
            pixel_mean: of the pixels as they come, 0-255, per channel.
            pixel_std: the same.
            ignore_value: in ``sem_seg``, of pixels that do not count.
            multi_scale: at test; None: the whole image at its own size.
            target_checks: knows how the data sets number their classes; None: as the vocabulary.

        Raises:
            OVDError: classes that cannot be had, or embeddings that do not fit.
        """
        super().__init__()
        self.backbone = backbone
        self.decoder = decoder
        self.head = head
        self.in_features = list(in_features)
        shapes = backbone.output_shape()
        self.divisor = max(shapes[name].stride for name in self.in_features)
        self.ignore_value = ignore_value
        self.multi_scale = multi_scale
        self.target_checks = TargetChecks() if target_checks is None else target_checks
        self.class_embedder = as_class_embedder(class_embedder)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self._rows_of_names: dict[tuple[str, ...], Tensor] = {}
        self._set_vocabulary(vocabulary)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The parts that ``MODEL.LSEG``, ``MODEL.BACKBONE`` and ``MODEL.OPEN_VOCAB`` name.

        Raises:
            OVDError: unknown parts, or parts that do not fit.
        """
        keys, open_vocab = cfg.MODEL.LSEG, cfg.MODEL.OPEN_VOCAB
        backbone = build_backbone(cfg)
        levels = _levels(backbone.output_shape(), keys.IN_FEATURES)
        regulariser, test = None, keys.TEST
        if keys.REGULARISER.KIND:
            regulariser = SpatialRegulariser(
                keys.REGULARISER.KIND,
                depth=keys.REGULARISER.DEPTH,
                activation=keys.REGULARISER.ACTIVATION,
            )
        multi_scale = None
        if test.WINDOW:
            multi_scale = MultiScaleScores(
                tuple(test.SCALES), test.BASE_SIZE, test.WINDOW, test.STRIDE, test.FLIP
            )
        return {
            "backbone": backbone,
            "decoder": DPTDecoder([level.channels for level in levels], keys.WIDTH, keys.NORM),
            "head": PixelClassifier(
                keys.WIDTH,
                open_vocab.EMBED_DIM,
                logit_scale=1 / keys.TEMPERATURE,
                regulariser=regulariser,
                half=keys.HALF_CORRELATION,
            ),
            "in_features": keys.IN_FEATURES,
            "vocabulary": configured_vocabulary(
                open_vocab.VOCABULARY, cfg.DATASETS.TRAIN, cfg.DATASETS.NOVEL_NAMES
            ),
            "class_embedder": configured_class_embedder(
                open_vocab.TEXT_EMBEDDINGS, open_vocab.TEXT_ENCODER, open_vocab.PROMPTS,
                open_vocab.USE_SYNONYMS, cfg.MODEL.DEVICE,
            ),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "multi_scale": multi_scale,
            "target_checks": TargetChecks(cfg),
        }  # fmt: skip

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def set_vocabulary(self, vocabulary: VocabularyLike | None) -> None:
        """Swaps the classes.

        Args:
            vocabulary: K classes, in any number and order; None: none.

        Raises:
            OVDError: names that cannot be had, or embeddings that do not fit; nothing changes then.
        """
        self._set_vocabulary(vocabulary)
        self.target_checks.honoured.add(EVALUATION)  # the caller knows what is asked for

    def _set_vocabulary(self, vocabulary: VocabularyLike | None) -> None:
        classes = None if vocabulary is None else as_vocabulary(vocabulary)
        if classes is not None:
            found = self.class_embedder.embed(classes)
            self.head.set_class_embeddings(found.embeddings, found.encoder_id)
        self.vocabulary: Vocabulary | None = classes
        self._rows_of_names.clear()

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """See the class."""
        return self.losses(batched_inputs) if self.training else self.inference(batched_inputs)

    def losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """``loss_sem_seg``, see the class."""
        _check_maps(batched_inputs)
        own = [tuple(s["class_names"]) if "class_names" in s else None for s in batched_inputs]
        images = [sample["image"].to(self.device).float() for sample in batched_inputs]
        maps = [sample["sem_seg"].to(self.device) for sample in batched_inputs]
        padded = ImageList.from_tensors(images, self.divisor).tensor
        targets = ImageList.from_tensors(maps, self.divisor, self.ignore_value).tensor
        words, targets = self._words_and_targets(own, targets)
        logits = _enlarged(self._logits(padded, words), padded.shape[-2:])
        return {"loss_sem_seg": pixel_cross_entropy(logits, targets, IGNORED)}

    def _words_and_targets(
        self, own: Sequence[tuple[str, ...] | None], targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(K, D) or (N, K, D) rows, and (N, H, W) places in them or IGNORED."""
        numbers = self.target_checks.class_numbers
        counts = {None if names is None else len(names) for names in own}
        if len(counts) > 1:
            raise OVDError(
                "Images with class_names and without, or with several numbers of them, are in one "
                "training batch: give all images of a batch the same number of class_names."
            )
        if own[0] is not None:
            words = torch.stack([self._rows(names) for names in own])
            return words, numbers.checked_map(
                targets, len(own[0]), self.ignore_value, "class_names of an image"
            )
        vocabulary = self._present_vocabulary()
        self.target_checks.before_training(None, vocabulary, {})
        words = self.head.class_embeddings
        return words, numbers.map_of_vocabulary(targets, vocabulary, self.ignore_value)

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """Score maps, see the class."""
        groups: dict[Any, list[int]] = {}
        for place, sample in enumerate(batched_inputs):  # none is padded because of another
            names = tuple(sample["class_names"]) if "class_names" in sample else None
            groups.setdefault((names, tuple(sample["image"].shape)), []).append(place)
        results: dict[int, Tensor] = {}
        for (names, (_, height, width)), places in groups.items():
            if names is None:
                self.target_checks.before_inference(self._present_vocabulary())
            words = self.head.class_embeddings if names is None else self._rows(names)
            images = torch.stack([batched_inputs[place]["image"] for place in places])
            images = images.to(self.device).float()
            frames = [
                (batched_inputs[p].get("height", height), batched_inputs[p].get("width", width))
                for p in places
            ]
            results.update(zip(places, self._score_maps(images, words, frames)))
        return [{"sem_seg": results[place]} for place in range(len(batched_inputs))]

    def _score_maps(
        self, images: Tensor, words: Tensor, frames: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """(K, *frame) per image of one size, (N, C, H, W)."""
        if self.multi_scale is None:
            return [
                self._in_frame(logits, images.shape[-2:], frame)
                for logits, frame in zip(self._logits(images, words), frames)
            ]
        many = len(words) > self.head.embed_dim and self.head.is_linear
        head = self.head.unit_pixels if many else partial(self.head, classes=words)
        network = partial(self._window_maps, head=head)
        maps = (self.multi_scale(network, x[None], frame)[0] for x, frame in zip(images, frames))
        return [self._many_words(pixels, words) if many else pixels for pixels in maps]

    def _many_words(self, pixels: Tensor, words: Tensor) -> Tensor:
        """(K, H, W) logits of (D, H, W) sums of unit vectors: what windows, flips and scales do to
        logits is linear, so it may be done to the vectors instead."""
        result = pixels.new_empty(len(words), *pixels.shape[1:])
        for part, out in zip(words.split(_CLASSES_AT_ONCE), result.split(_CLASSES_AT_ONCE)):
            out.copy_(self.head.logits_of(pixels[None], part)[0])
        return result

    def _window_maps(self, images: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
        """(N, C, H, W) -> what ``head`` makes of the decoder's map, (N, *, H, W)."""
        height, width = images.shape[-2:]
        maps = head(self._decoded(images))
        return _enlarged(maps, self._padded(height, width))[..., :height, :width]

    def _in_frame(self, logits: Tensor, size: tuple[int, int], frame: tuple[int, int]) -> Tensor:
        """Logits of a padded image of ``size``, (K, h, w), in the frame: (K, *frame)."""
        result = logits.new_empty(len(logits), *frame)
        for part, out in zip(logits.split(_CLASSES_AT_ONCE), result.split(_CLASSES_AT_ONCE)):
            whole = _enlarged(part[None], self._padded(*size))[0]
            out.copy_(sem_seg_postprocess(whole, size, *frame))
        return result

    def _logits(self, images: Tensor, words: Tensor) -> Tensor:
        """(N, C, H, W), 0-255 -> (N, K, H' / 2, W' / 2) fp32, for the padded sides H' and W'."""
        return self.head(self._decoded(images), words)

    def _decoded(self, images: Tensor) -> Tensor:
        """The decoder's map of the padded images, (N, C, H' / 2, W' / 2)."""
        height, width = images.shape[-2:]
        below, right = (p - s for p, s in zip(self._padded(height, width), (height, width)))
        pixels = (F.pad(images, (0, right, 0, below)) - self.pixel_mean) / self.pixel_std
        maps = self.backbone(pixels)
        return self.decoder([maps[name] for name in self.in_features])

    def _padded(self, height: int, width: int) -> tuple[int, int]:
        return tuple(-(-side // self.divisor) * self.divisor for side in (height, width))

    def _rows(self, names: tuple[str, ...]) -> Tensor:
        """(K, D) of a label set that a sample brings."""
        if names not in self._rows_of_names:
            known = self.vocabulary.names if self.vocabulary is not None else ()
            if set(names) <= set(known):
                places = [known.index(name) for name in names]
                rows = self.head.class_embeddings[places]
            else:
                found = self.class_embedder.embed(as_vocabulary(list(names)))
                if found.dim != self.head.embed_dim:
                    raise OVDError(
                        f"class_names are embedded to {found.dim} values, pixels to "
                        f"{self.head.embed_dim}: set MODEL.OPEN_VOCAB.EMBED_DIM {found.dim}."
                    )
                rows = found.embeddings
            self._rows_of_names[names] = rows
        return self._rows_of_names[names].to(self.device)

    def _present_vocabulary(self) -> Vocabulary:
        if self.vocabulary is None:
            raise OVDError(
                "The model has no classes yet (MODEL.OPEN_VOCAB.VOCABULARY later): call "
                "set_vocabulary first, or give every image its class_names."
            )
        return self.vocabulary


def _enlarged(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=True)


def _levels(shapes: dict[str, ShapeSpec], names: Sequence[str]) -> list[ShapeSpec]:
    """Of the feature maps that the decoder takes; raises OVDError for what it cannot take."""
    missing = [name for name in names if name not in shapes]
    if missing:
        raise OVDError(
            f"MODEL.LSEG.IN_FEATURES names {missing[0]!r}, which the backbone does not give: "
            f"it gives {', '.join(shapes)}."
        )
    levels = [shapes[name] for name in names]
    if any(2 * a.stride != b.stride for a, b in zip(levels, levels[1:])):
        raise OVDError(
            f"MODEL.LSEG.IN_FEATURES have the strides {[level.stride for level in levels]}: each "
            "must be twice the one before, as 4, 8, 16, 32 are."
        )
    return levels


def _check_maps(samples: Sequence[dict[str, Any]]) -> None:
    for sample in samples:
        image, labels = sample["image"], sample.get("sem_seg")
        if labels is not None and labels.shape == image.shape[-2:]:
            continue
        what = "has no sem_seg" if labels is None else f"has a sem_seg of {tuple(labels.shape)}"
        raise OVDError(
            f"{sample.get('file_name', 'An image')} of {tuple(image.shape[-2:])} {what}: LSeg "
            "trains on data sets with a label map of the same size (sem_seg_file_name) for every "
            "image."
        )
