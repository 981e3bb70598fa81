"""Boxes of a detector of ours that is asked in words (MAVL), for objects or for classes.

Letters: P questions, Q boxes of a question, Ri boxes of a question on image i.

Sources: Maaz et al. 2021 (MAVL), sections 3 and 4.1; Rasheed et al. 2022 (RKD), sections 3.2 and
3.3, and its public code: the best 50 boxes of each question, pooled, NMS at 0.5.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ovd_d2.config_file import load_config
from ovd_d2.data.model_kind import answers_questions
from ovd_d2.errors import OVDError
from ovd_d2.inference.open_detector import inference_config, open_detector, run_files, to_sample
from ovd_d2.language import Vocabulary, fill
from ovd_d2.modeling.query_merging import QueryMerging, boxes_in_pixels
from ovd_d2.pseudo_labelling import OBJECT_QUERIES, Found
from ovd_d2.pseudo_labelling.box_choice import BOXES_PER_QUERY, NMS_IOU, cleaned

from .own_detector import model_name
from .queries import AskedInWords


def is_asked_in_words(checkpoint: str, config_file: str = "", asked: str = "") -> bool:
    """Whether a checkpoint of ours is of a model that answers questions.

    Args:
        checkpoint: see :class:`AskedDetector`, as the others.
        config_file: its yaml; "": the one beside the weights.
        asked: what named the checkpoint, for messages.

    Raises:
        OVDError: no config or checkpoint.
    """
    _, config = run_files(checkpoint, config_file, asked=asked)
    return answers_questions(load_config(str(config)))


class AskedDetector:
    """A :class:`~ovd_d2.proposals.queries.QueryDetector` out of a model of ours that answers
    questions (:class:`~ovd_d2.modeling.meta_arch.MAVL`).

    Backbone, encoder and decoder run once per image, whatever it is asked. A question is read once,
    for all images. Of the config count ``MODEL.MAVL.SCORE_THRESH_TEST``, ``BOXES_PER_QUERY_TEST``
    and ``WHOLE_PIXELS_TEST``.

    Args:
        checkpoint: weights of train_net.py or `ovd convert mavl`.
        device: where to compute.
        config_file: the yaml of the model; "": the one beside the weights.
        asked: what named the checkpoint, for messages; "": the checkpoint.

    Attributes:
        name: "model:FOLDER/FILE@DIGEST".
        takes_queries: False: a model without language, which finds objects whatever it is asked.

    Raises:
        OVDError: no config or checkpoint, weights that do not fit, or another kind of model; named.
    """

    def __init__(
        self, checkpoint: str, device: str = "cpu", config_file: str = "", asked: str = ""
    ) -> None:
        path, config = run_files(checkpoint, config_file, asked=asked)
        cfg = load_config(str(config))
        if not answers_questions(cfg):
            raise OVDError(
                f"{asked or checkpoint} is a {cfg.MODEL.META_ARCHITECTURE}, which is not asked for "
                "objects in words: give a MAVL (MODEL.META_ARCHITECTURE), or rpn:CHECKPOINT for "
                "the RPN of a detector"
            )
        self._cfg = inference_config(cfg, device)
        self._model = open_detector(self._cfg, path)
        self.takes_queries = self._model.text_backbone is not None
        self.name = model_name(path, config, config_file)
        self._asked = asked or checkpoint

    def __call__(self, image: Tensor, queries: Sequence[str]) -> list[Found]:
        """Boxes for each of P questions, as ``QueryDetector`` defines them; not cut to the
        image."""
        if not queries:
            return []
        merging = self._model.merging
        boxes, scores = self._answers(image, queries)
        corners = boxes_in_pixels(boxes.float(), _size(image), merging.whole_pixels)
        found = (merging.best_of_query(*one) for one in zip(corners, scores))
        return [(best.cpu(), rated.cpu()) for best, rated in found]

    def objects(self, image: Tensor, queries: Sequence[str]) -> Found:
        """Boxes of objects, whichever question found them: the best 50 of each question, pooled,
        without duplicates above an IoU of 0.5; not cut to the image, best first.

        Args:
            image: (3, H, W) uint8, RGB.
            queries: P questions; of a model without language they mean nothing.
        """
        own = self._model.merging
        merging = QueryMerging(
            score_threshold=own.score_threshold,
            boxes_per_query=BOXES_PER_QUERY,
            nms_threshold=NMS_IOU,
            whole_pixels=own.whole_pixels,
        )
        boxes, scores, _ = merging(*self._answers(image, queries), _size(image))
        return boxes.cpu(), scores.cpu()

    def class_queries(self, vocabulary: Vocabulary) -> list[str]:
        """What to ask for each of K classes, by ``MODEL.MAVL.CLASS_QUERY``.

        Raises:
            OVDError: a model without language.
        """
        self._check_takes_queries("tells no classes apart: give one with language")
        return [fill(self._model.class_query, name) for name in vocabulary.names]

    def object_queries(self, given: Sequence[str]) -> tuple[str, ...]:
        """What to ask for objects: ``given``, or RKD's four if empty; () for a model without
        language.

        Raises:
            OVDError: questions for a model without language.
        """
        if given:
            self._check_takes_queries("reads no --queries: leave them out")
        return tuple(given or OBJECT_QUERIES) if self.takes_queries else ()

    def _check_takes_queries(self, otherwise: str) -> None:
        if not self.takes_queries:
            raise OVDError(
                f"{self._asked} is a model without language (MODEL.MAVL.LANGUAGE False), which "
                f"{otherwise}"
            )

    @torch.no_grad()
    def _answers(self, image: Tensor, queries: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(P, Q, 4) boxes, cx cy w h, relative, and (P, Q) scores."""
        sample = to_sample(image.permute(1, 2, 0).numpy(), self._cfg)
        boxes, scores = self._model.ask(self._model.read_images([sample["image"]]), queries)
        return boxes[0], scores[0]


class ObjectsAskedFor:
    """A :class:`~ovd_d2.proposals.proposer.BoxProposer`: objects of any class, of a detector that
    is asked for them in several wordings, merged (see :meth:`AskedDetector.objects`).

    Args:
        detector: is asked.
        queries: what; empty: RKD's four.
        topk: boxes to keep per image; None: all.

    Attributes:
        queries: what it asks.
        is_merged: there are no duplicates among its boxes.

    Raises:
        OVDError: questions for a model without language.
    """

    has_scores = True
    is_merged = True

    def __init__(
        self, detector: AskedDetector, queries: Sequence[str] = (), topk: int | None = None
    ) -> None:
        self._detector, self._topk = detector, topk
        self.queries = detector.object_queries(queries)
        self.name = detector.name

    def __call__(
        self, record: dict[str, Any], image: Tensor, classes: Sequence[int] | None = None
    ) -> list[Found]:
        """Boxes of one image, as :class:`~ovd_d2.proposals.proposer.BoxProposer` defines them: one
        list, without duplicates, cut to the image."""
        boxes, scores = cleaned(self._detector.objects(image, self.queries), _size(image))
        return [(boxes[: self._topk], scores[: self._topk])]


def asked_for_labels(
    detector: AskedDetector, vocabulary: Vocabulary | None, queries: Sequence[str] = ()
) -> AskedInWords | ObjectsAskedFor:
    """The proposer of pseudo-labels' boxes: of each class, or of objects.

    Args:
        detector: is asked.
        vocabulary: K classes; None: objects.
        queries: what to ask for objects; empty: RKD's four.

    Raises:
        OVDError: classes or questions for a model without language.
    """
    if vocabulary is None:
        return ObjectsAskedFor(detector, queries)
    return AskedInWords(detector, detector.class_queries(vocabulary))


def asked_for_regions(
    detector: AskedDetector, queries: Sequence[str], topk: int
) -> ObjectsAskedFor:
    """The proposer of a region store's boxes; its name tells what is asked and how many are kept.

    Args:
        detector: is asked.
        queries: what; empty: RKD's four.
        topk: boxes to keep per image.

    Raises:
        OVDError: questions for a model without language.
    """
    proposer = ObjectsAskedFor(detector, queries, topk)
    words = f", asked {', '.join(map(repr, proposer.queries))}" if proposer.queries else ""
    proposer.name += f"{words}, top {topk}"
    return proposer


def _size(image: Tensor) -> tuple[int, int]:
    height, width = image.shape[1:]
    return height, width
