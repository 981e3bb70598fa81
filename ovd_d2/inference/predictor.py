"""``OpenVocabPredictor``: a trained open-vocabulary detector that predicts pictures.

Letters: R detections of a picture, H, W its height and width, K classes.
"""

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor

from ovd_d2.config_file import load_config
from ovd_d2.data.model_kind import brings_weights
from ovd_d2.errors import OVDError
from ovd_d2.files.images import COLOUR_ORDERS, Picture, to_rgb
from ovd_d2.language import ClassEmbedder, Vocabulary, VocabularyLike
from ovd_d2.language.known_rows import KnownRows
from ovd_d2.modeling import get_vocabulary, set_vocabulary
from ovd_d2.modeling.open_vocabulary import part_with
from ovd_d2.structures.grounding import Span, TokenSpans

from .arguments import (
    as_attributes,
    check_count,
    check_score_threshold,
    find_device,
    wanted_vocabulary,
)
from .attributes import AttributeExpansion
from .example_vocabulary import (
    ByExamples,
    given_examples,
    is_typed,
    own_embedder,
    wanted_classes,
)
from .examples import ExamplesLike
from .grounding import Grounding, as_caption, check_reads_captions
from .model_folders import config_and_weights, facts_of, known_rows_beside
from .name_thresholds import ThresholdsLike
from .open_detector import inference_config, open_detector, to_sample, trained_vocabulary
from .pictures import each_picture, is_single
from .prediction import Prediction
from .ruled_detector import RuledDetector, ruled_detector, shares_probability
from .tiles import Tiles, detect_in_tiles, wanted_tiles

logger = logging.getLogger(__name__)
OBJECTS = Vocabulary(("object",))  # what objects of any class are called


class OpenVocabPredictor:
    """A trained open-vocabulary detector or segmentation model, ready for pictures::

        predictor = OpenVocabPredictor.from_pretrained("mini")
        predictor.set_vocabulary("cat, red mug")
        instances = predictor.predict("kitchen.jpg")
        names = [predictor.vocabulary.names[k] for k in instances.pred_classes]

    Pictures are resized and scored as in ``train_net.py --eval-only``. What comes out for a picture
    does not depend on the others it is batched with.

    Attributes:
        facts: what the folder of the model tells about it (``facts.json``); empty without one.
        rules: what negatives, competitors, thresholds of names or synonyms made of it; None without
            any.
    """

    def __init__(
        self,
        config: str | os.PathLike | CfgNode,
        weights: str | os.PathLike = "",
        *,
        vocabulary: VocabularyLike | ExamplesLike | ByExamples | None = None,
        device: str | torch.device | None = None,
        score_threshold: float | None = None,
        topk: int | None = None,
        input_format: str = "BGR",
        batch_size: int = 4,
        alone: bool = False,
    ) -> None:
        """
        Args:
            config: the yaml the model was trained with (``OUTPUT_DIR/config.yaml``), or the config.
            weights: ``.pth`` (nothing in it is run) or ``.safetensors``; "" takes MODEL.WEIGHTS.
            vocabulary: see :meth:`set_vocabulary`; None: that of the config, if it can be had
                here, else ``set_vocabulary`` must be called before predicting.
            device: "cpu", "cuda", "cuda:1", ...; None: a GPU if there is one.
            score_threshold: detections below are dropped; None: MODEL.ROI_HEADS.SCORE_THRESH_TEST.
            topk: detections per picture; None: TEST.DETECTIONS_PER_IMAGE.
            input_format: colour order of arrays and tensors, "BGR" (as ``cv2.imread`` gives and
                Detectron2's ``DefaultPredictor`` takes) or "RGB". Files and PIL images know theirs.
            batch_size: pictures of one size that go through the model together.
            alone: see :meth:`set_vocabulary`.

        Raises:
            OVDError: naming the file, key or argument.
        """
        if input_format not in COLOUR_ORDERS:
            raise OVDError(f'input_format is {input_format!r}; it must be "BGR" or "RGB".')
        self.input_format = input_format
        self.batch_size = check_count("batch_size", batch_size)
        self.device = find_device(device)
        self.facts: dict[str, Any] = {}
        cfg = config.clone() if isinstance(config, CfgNode) else load_config(os.fspath(config))
        weights = os.fspath(weights) or cfg.MODEL.WEIGHTS
        if not (weights or brings_weights(cfg)):
            raise OVDError("No weights: give the checkpoint, or set MODEL.WEIGHTS in the config.")
        self._trained = trained_vocabulary(cfg)
        if isinstance(vocabulary, Iterator):
            vocabulary = list(vocabulary)
        by_examples = given_examples(vocabulary)
        if vocabulary is not None and by_examples is None:
            wanted_vocabulary(vocabulary)  # bad names are found before the model is opened
        self._attributes: AttributeExpansion | None = None
        self.rules: RuledDetector | None = None
        self.cfg = _inference_config(cfg, self.device, score_threshold, topk)
        self._score_threshold = score_threshold
        self.model = open_detector(self.cfg, weights, self._trained)
        self._words = self._words_beside_trained = own_embedder(self.model)
        if self._words is not None and self._trained is not None:
            rows = known_rows_beside(weights)
            self._words_beside_trained = KnownRows(self._words, self._trained, rows)
        set_vocabulary(self.model, self._trained if vocabulary is None else None)
        if vocabulary is not None:
            self.set_vocabulary(by_examples or vocabulary, alone=alone)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, **kwargs: Any) -> "OpenVocabPredictor":
        """A model that ships with ovd_d2, one that ``ovd export`` wrote, or one of transformers.

        Args:
            name: "mini" or another of :func:`packaged_models`, the folder of an exported model, or
                "hf:" and a zero-shot detector of transformers, by its name or folder.
            kwargs: of the constructor, from ``vocabulary`` on. A ``score_threshold`` of None is
                that of the model's facts, if they have one.

        Raises:
            OVDError: no such model, or it is damaged.
        """
        facts = facts_of(name)
        if kwargs.get("score_threshold") is None:
            kwargs["score_threshold"] = facts.get("score_threshold")
        predictor = cls(*config_and_weights(name), **kwargs)
        predictor.facts = facts
        return predictor

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The present K classes (names times attributes, if there are any); "object" alone of a
        model that finds objects of any class where none are set; None of others before any were
        set."""
        layer = self._attributes or self.rules
        present = get_vocabulary(self.model) if layer is None else layer.vocabulary
        if present is None and part_with(self.model, "finds_objects") is not None:
            return OBJECTS
        return present

    @property
    def trained(self) -> Vocabulary | None:
        """The classes the model was trained with; None if they cannot be had here."""
        return self._trained

    @property
    def words(self) -> ClassEmbedder | None:
        """What embeds names; None where the model reads them itself."""
        return self._words

    @property
    def score_threshold(self) -> float:
        """Detections that score less are dropped."""
        if self._score_threshold is not None:
            return self._score_threshold
        return self.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST

    @property
    def encoder_id(self) -> str:
        """Id of the text encoder that embeds the names; "" where the model reads them itself."""
        owner = part_with(self.model, "class_embedder")
        return "" if owner is None else owner.class_embedder.encoder_id

    def set_vocabulary(
        self,
        vocabulary: VocabularyLike | ExamplesLike | ByExamples | None,
        *,
        negatives: VocabularyLike | None = None,
        thresholds: ThresholdsLike | None = None,
        synonyms: str = "mean",
        alone: bool = False,
    ) -> None:
        """Swaps the classes to look for. Their embeddings are made by the config's TEXT_ENCODER and
        PROMPTS and cached on disk.

        Args:
            vocabulary: "cat, red mug", a .txt or .json file, "dataset:NAME", "everything" (the
                names of LVIS and Objects365), a list of names, or a :class:`Vocabulary`. Names that
                the model was trained with get the synonyms it was trained with; those it had no
                boxes of count as novel where branches vote (see
                :func:`~ovd_d2.language.known_names.with_known_names`). A data set's or a
                :class:`Vocabulary` is taken as it is. By examples:
                ``{"my mug": [("a.jpg", (x0, y0, x1, y1)), ...], "cat": None}``, None for a class by
                its word; a profile of ``ovd vocab learn`` (.safetensors); or :class:`ByExamples`.
                None: objects of any class, of models that find them (MAVL).
            negatives: names, given in the same ways, that compete and are not reported: what scores
                more for one of them is no detection (and "dataset:NAME": its other names), see
                :class:`~ovd_d2.inference.ruled_detector.RuledDetector`. None: none.
            thresholds: name -> least score, or a .json file of them; other names have the
                predictor's ``score_threshold``.
            synonyms: "mean": a class is one text, made of its words as the model was trained to
                (MODEL.OPEN_VOCAB.USE_SYNONYMS: the mean of their embeddings). "max": each of its
                words is looked for, see :meth:`~ovd_d2.inference.class_rules.ClassRules.apply`.
            alone: where classes share a probability (softmax), names in a string, list or file, and
                classes by examples, are scored beside the other classes that the model was trained
                with, which compete and are not reported: otherwise two names would share what 160
                learned to share. Those close to a name that it was not trained with do not. True:
                names are scored alone, as those of a data set and of a :class:`Vocabulary` are.

        Raises:
            OVDError: no usable names or examples, a name that is a negative too, a threshold of
                none of them, a model that cannot, or no encoder; the present classes stay.
        """
        if vocabulary is None:
            self._set_no_vocabulary(negatives, thresholds, alone)
            return
        rows, beside = self._words_beside_trained, {}
        competing = not alone and is_typed(vocabulary) and shares_probability(self.model)
        competing = competing and isinstance(rows, KnownRows)
        names, embedder = wanted_classes(self, vocabulary, rows if competing else self._words)
        if competing:
            close_to = partial(rows.close_to, embedder=embedder)
            beside = {"competing": True, "close_to": close_to}
        rules = ruled_detector(
            self.model, names, negatives, thresholds, synonyms,
            trained=self._trained,
            **beside,
            score_threshold=self._score_threshold,
            default_threshold=self.score_threshold,
            topk=self.cfg.TEST.DETECTIONS_PER_IMAGE,
        )  # fmt: skip
        set_vocabulary(self.model, names if rules is None else rules.scored, embedder)
        self._attributes, self.rules = None, rules

    def _set_no_vocabulary(
        self, negatives: VocabularyLike | None, thresholds: ThresholdsLike | None, alone: bool
    ) -> None:
        if part_with(self.model, "finds_objects") is None:
            raise OVDError(
                f"vocabulary is None, but {type(self.model).__name__} finds named classes alone: "
                "give their names."
            )
        if negatives is not None or thresholds is not None or alone:
            raise OVDError(
                "negatives, thresholds and alone are of names: give a vocabulary too, or leave "
                "them out."
            )
        set_vocabulary(self.model, None)
        self._attributes = self.rules = None

    def set_attributes(self, attributes: str | Sequence[str]) -> None:
        """Every name in all of these attributes from now on, until the next ``set_vocabulary``:
        "cat" becomes "red cat" or "striped cat", whichever fits better.

        Args:
            attributes: "red, striped", or a list.

        Raises:
            OVDError: no vocabulary yet, no usable attribute, or a model that cannot; nothing
                changes then.
        """
        rules = self.rules
        names = get_vocabulary(self.model) if rules is None else rules.vocabulary
        if names is None:
            raise OVDError("There is nothing to describe: call set_vocabulary first.")
        if rules is not None and rules.is_asked:
            raise OVDError(
                "Attributes go with neither negatives, thresholds of names nor synonyms='max': "
                "call set_vocabulary without them first."
            )
        self._attributes = AttributeExpansion(
            self.model, names, as_attributes(attributes),
            room=nullcontext if rules is None else rules.room,
        )  # fmt: skip
        if self.facts.get("attributes"):
            logger.warning("Attributes of this model: %s", self.facts["attributes"])

    def __call__(self, image: Picture) -> dict[str, Instances | Tensor]:
        """As Detectron2's ``DefaultPredictor``: one picture -> ``{"instances": ...}``, or
        ``{"sem_seg": ...}`` of models that give label maps."""
        found = self.predict(image)
        return {"sem_seg" if isinstance(found, Tensor) else "instances": found}

    def predict(
        self,
        images: Picture | Iterable[Picture],
        *,
        input_format: str | None = None,
        tile: int | None = None,
        overlap: float | None = None,
    ) -> Instances | Tensor | list[Instances] | list[Tensor]:
        """Finds the vocabulary's classes.

        Args:
            images: a file, a PIL image, an array (H, W, 3), a tensor (3, H, W), uint8 each (see
                :func:`~ovd_d2.files.images.to_rgb` for grey, alpha, 16 bits); or a folder, or a
                list of all these.
            input_format: colour order of arrays and tensors; None: the predictor's.
            tile: side of the tiles, in pixels, that larger pictures are cut into, to find what is
                small in them (see :mod:`~ovd_d2.inference.tiles`); None: they are not cut.
            overlap: what neighbouring tiles have in common, as a share of ``tile``; None: 0.2.

        Returns:
            ``Instances``, or ``sem_seg`` (K, H, W) of models that give label maps (see
            :class:`Prediction`), for a single picture; a list of them for a folder or list.

        Raises:
            OVDError: a picture cannot be read, or no vocabulary was set.
        """
        options = {"input_format": input_format, "tile": tile, "overlap": overlap}
        found = [p.found for p in self.stream(images, **options)]
        return found[0] if is_single(images) else found

    def ground(
        self,
        image: Picture,
        caption: str | TokenSpans,
        spans: Sequence[Span] | None = None,
        *,
        input_format: str | None = None,
    ) -> Grounding:
        """Finds what the phrases of a caption mean, whatever the vocabulary.

        Args:
            image: one picture, see :meth:`predict`.
            caption: "a cat on a red chair".
            spans: [begin, end) characters of the phrases; None: the caption's noun phrases.
            input_format: see :meth:`predict`.

        Raises:
            OVDError: a model that reads no captions, a caption without noun phrases or longer than
                it reads, a span outside the caption, or a picture that cannot be read.
        """
        check_reads_captions(self.model)
        phrases = as_caption(caption, spans)
        pixels = to_rgb(
            image,
            input_format=input_format or self.input_format,
            max_pixels=self.cfg.INPUT.MAX_PIXELS,
        )
        with torch.no_grad():
            (output,) = self.model([{**to_sample(pixels, self.cfg), "caption": phrases}])
        return Grounding(pixels, phrases, self._good_enough(output["instances"].to("cpu")))

    def stream(
        self,
        images: Picture | Iterable[Picture],
        *,
        input_format: str | None = None,
        on_error: Callable[[str, OVDError], None] | None = None,
        tile: int | None = None,
        overlap: float | None = None,
    ) -> Iterator[Prediction]:
        """As :meth:`predict`, one by one in order, reading ``batch_size`` pictures ahead at most:
        for folders and generators of any length.

        Args:
            images: see :meth:`predict`.
            input_format: see :meth:`predict`.
            on_error: called with source and error of a picture that cannot be read, which is then
                left out; None: the error is raised.
            tile: see :meth:`predict`; one picture is read ahead then.
            overlap: see :meth:`predict`.
        """
        if self.vocabulary is None:
            raise OVDError("There is nothing to look for: call set_vocabulary first.")
        tiles = wanted_tiles(tile, overlap)
        order = input_format or self.input_format
        return self._stream(each_picture(images), order, on_error, tiles)

    def _stream(
        self,
        pictures: Iterator[tuple[str, Picture]],
        input_format: str,
        on_error: Callable[[str, OVDError], None] | None,
        tiles: Tiles | None,
    ) -> Iterator[Prediction]:
        limit, at_once = self.cfg.INPUT.MAX_PIXELS, self.batch_size
        if tiles is not None:
            limit, at_once = tiles.max_pixels(limit), 1
        while chunk := list(itertools.islice(pictures, at_once)):
            sources, decoded = [], []
            for source, picture in chunk:
                try:
                    pixels = to_rgb(picture, input_format=input_format, max_pixels=limit)
                except OVDError as error:
                    if not isinstance(picture, os.PathLike):  # files are named already
                        error = OVDError(f"{source}: {error}")
                    if on_error is None:
                        raise error from None
                    on_error(source, error)
                    continue
                sources.append(source)
                decoded.append(pixels)
            if tiles is None:
                outputs = self._detect(decoded)
            else:
                outputs = [
                    detect_in_tiles(self._detect, pixels, tiles, self.batch_size)
                    for pixels in decoded
                ]
            for source, pixels, found in zip(sources, decoded, outputs):
                yield Prediction(source, pixels, **found)

    def _detect(self, images: list[np.ndarray]) -> list[dict[str, Instances | Tensor]]:
        """(H, W, 3) uint8 RGB pictures -> their detections or label maps. Those that have the same
        size after resizing share a batch, so that none is padded because of another."""
        samples = [to_sample(image, self.cfg) for image in images]
        by_size: dict[tuple[int, ...], list[int]] = {}
        for i, sample in enumerate(samples):
            by_size.setdefault(tuple(sample["image"].shape), []).append(i)
        found: dict[int, dict[str, Instances | Tensor]] = {}
        for members in by_size.values():
            layer = self._attributes or self.rules
            with torch.no_grad():
                outputs = (layer.detect if layer else self.model)([samples[i] for i in members])
            for i, output in zip(members, outputs):
                if "sem_seg" in output:
                    found[i] = {"sem_seg": output["sem_seg"].cpu()}
                else:
                    instances = output["instances"].to("cpu")
                    if layer is None or layer is self._attributes:
                        instances = self._good_enough(instances)
                    found[i] = {"instances": instances}
        return [found[i] for i in range(len(images))]

    def _good_enough(self, instances: Instances) -> Instances:
        """What reaches the threshold: not every model takes it from MODEL.ROI_HEADS."""
        if self._score_threshold is None:
            return instances
        return instances[instances.scores >= self._score_threshold]


def _inference_config(
    cfg: CfgNode, device: torch.device, score_threshold: float | None, topk: int | None
) -> CfgNode:
    cfg = inference_config(cfg, device)
    if score_threshold is not None:
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = check_score_threshold(score_threshold)
    if topk is not None:
        cfg.TEST.DETECTIONS_PER_IMAGE = check_count("topk", topk)
    return cfg
