"""A model that many users share: one works with it at a time, nobody sees another's names.

Letters: H, W height and width of a picture, R detections, K classes.
"""

import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from ovd_d2 import __version__
from ovd_d2.errors import OVDError
from ovd_d2.files.images import FILE_FORMATS, UnreadableImageError, read_image
from ovd_d2.inference.grounding import Grounding, check_reads_captions
from ovd_d2.inference.label_map_files import coco_segments, labels_of
from ovd_d2.inference.predict_files import coco_annotations
from ovd_d2.inference.prediction import Prediction
from ovd_d2.inference.predictor import OpenVocabPredictor
from ovd_d2.inference.ruled_detector import shares_probability
from ovd_d2.language.text_embeddings import TextEmbeddingBank
from ovd_d2.visualization.detections import draw_detections
from ovd_d2.visualization.grounding import draw_grounding
from ovd_d2.visualization.label_maps import class_shares, draw_label_map

from .limits import BusyError, Limits, TooLargeError, check_threshold

LEAST_THRESHOLD = 0.05  # what scores less is dropped inside of the model, as in Detectron2
UPLOAD = "upload"  # what messages call a picture
Box = Sequence[float]


@dataclass(frozen=True)
class Example:
    """What something looks like.

    Attributes:
        name: what it is called.
        content: an image file.
        boxes: x0, y0, x1, y1 in pixels of the picture, at least one.
        turns: how often the picture was turned by 90 degrees, clockwise, before the boxes were
            drawn.
    """

    name: str
    content: bytes
    boxes: Sequence[Box]
    turns: int = 0


@dataclass(frozen=True)
class Answer:
    """What a model found.

    Attributes:
        model: its title.
        names: K names that were looked for, or the phrases of a caption.
        prediction: the picture and R detections, or a label map.
        caption: what was grounded; None: names were looked for.
        info: facts for the json.
    """

    model: str
    names: tuple[str, ...]
    prediction: Prediction
    caption: Grounding | None = None
    info: dict[str, Any] = field(default_factory=dict)

    def rows(self) -> list[tuple[int, str, float, list[float]]]:
        """(class, name, score, x0 y0 x1 y1) of each detection, best first; none of label maps."""
        found = self.prediction.instances
        if found is None:
            return []
        columns = (found.pred_classes, found.scores, found.pred_boxes.tensor)
        return [(k, self.names[k], s, box) for k, s, box in zip(*(c.tolist() for c in columns))]

    def shares(self) -> dict[int, float]:
        """Of label maps, class -> its share of the pixels; else nothing."""
        found = self.prediction.sem_seg
        return {} if found is None else class_shares(labels_of(found))

    def drawn(self) -> np.ndarray:
        """(H', W', 3) uint8 RGB: what was found, drawn into the picture."""
        if self.caption is not None:
            return draw_grounding(self.caption.image, self.caption.caption, self.caption.instances)
        image, found = self.prediction.image, self.prediction.sem_seg
        if found is not None:
            return draw_label_map(image, labels_of(found), self.names)
        return draw_detections(image, self.prediction.instances, self.names)

    def coco(self) -> dict[str, Any]:
        """The json that ``ovd predict`` writes of one image."""
        height, width = self.prediction.image.shape[:2]
        found = self.prediction
        if found.sem_seg is None:
            annotations = coco_annotations(found.instances, 1)
        else:
            annotations = coco_segments(labels_of(found.sem_seg), 1)
        return {
            "info": {"ovd_d2": __version__, "model": self.model, **self.info},
            "images": [{"id": 1, "file_name": UPLOAD, "width": width, "height": height}],
            "categories": [{"id": k + 1, "name": name} for k, name in enumerate(self.names)],
            "annotations": annotations,
        }


def read_upload(content: bytes, limits: Limits) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an uploaded file; its size is looked at before it is decoded.

    Raises:
        OVDError: it is no image, broken, or too large.
    """
    if len(content) > limits.bytes:
        raise TooLargeError(f"The file has more than {limits.bytes} bytes: make it smaller.")
    try:
        Image.init()
        formats = [name for name in FILE_FORMATS if name in Image.OPEN]
        with Image.open(io.BytesIO(content), formats=formats) as image:
            width, height = image.size
    except Exception:  # the reader says what is wrong
        width = height = 0
    if width * height > limits.pixels:
        raise TooLargeError(
            f"The image has {width} x {height} pixels, more than {limits.pixels}: make it smaller."
        )
    if not content:
        raise UnreadableImageError.of(UPLOAD, "it is empty")
    return read_image(UPLOAD, content=content, max_pixels=limits.pixels)


class ServedModel:
    """A predictor behind a lock.

    Args:
        title: what users call the model.
        predictor: colour order "RGB"; nobody else uses it.
        limits: what a request may ask for.
    """

    def __init__(self, title: str, predictor: OpenVocabPredictor, limits: Limits) -> None:
        self.title = title
        self.limits = limits
        self._predictor = predictor
        self._trained = predictor.vocabulary
        if self._trained is None:
            predictor.set_vocabulary(["thing"])
        black = np.zeros((64, 64, 3), np.uint8)  # the first picture takes longest, too
        self._gives_label_maps = next(predictor.stream([black])).sem_seg is not None
        self._present: tuple[tuple[str, ...], bool] | None = None  # names, and whether alone
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(1 + limits.waiting)

    @classmethod
    def load(cls, title: str, model: str, limits: Limits, device: str | None) -> "ServedModel":
        """The model ``model`` (see ``OpenVocabPredictor.from_pretrained``).

        Names that users type are not kept on disk.
        """
        from ovd_d2.inference.model_folders import facts_of

        default = facts_of(model).get("score_threshold", LEAST_THRESHOLD)
        predictor = OpenVocabPredictor.from_pretrained(
            model,
            device=device,
            score_threshold=min(default, LEAST_THRESHOLD),
            input_format="RGB",
        )
        if isinstance(predictor.words, TextEmbeddingBank):
            predictor.words.cache = False
        return cls(title, predictor, limits)

    @property
    def reads_captions(self) -> bool:
        """Whether :meth:`ground` can be asked."""
        try:
            check_reads_captions(self._predictor.model)
        except OVDError:
            return False
        return True

    @property
    def names_compete(self) -> bool:
        """Whether names are scored beside the others of the training unless they are alone."""
        return self._trained is not None and shares_probability(self._predictor.model)

    @property
    def threshold(self) -> float:
        """The score below which nothing is shown unless one asks for it."""
        return self._predictor.facts.get("score_threshold", 0.3)

    @property
    def least_threshold(self) -> float:
        """The score below which nothing can be had."""
        return self._predictor.score_threshold

    @property
    def facts(self) -> dict[str, Any]:
        """What users are told."""
        return {
            "name": self.title,
            "threshold": self.threshold,
            "least_threshold": self.least_threshold,
            "topk": self._predictor.cfg.TEST.DETECTIONS_PER_IMAGE,
            "reads_captions": self.reads_captions,
            "classes": 0 if self._trained is None else len(self._trained),
            "learned_from": str(self._predictor.facts.get("learned_from", "")),
        }

    def detect(
        self,
        content: bytes,
        names: str = "",
        threshold: float | None = None,
        topk: int | None = None,
        example: Example | None = None,
        alone: bool = False,
    ) -> Answer:
        """Finds names, and what looks like an example.

        Args:
            content: an image file.
            names: "cat, red mug"; "": what the model was trained on, or the example alone.
            threshold: least score; None: the model's own.
            topk: detections at most; None: the config's.
            example: what else to look for.
            alone: names and example do not compete with what else the model was trained with.

        Raises:
            OVDError: something of this cannot be used; :class:`BusyError`: too many are waiting.
        """
        threshold = self.threshold if threshold is None else check_threshold(threshold)
        wanted = self.limits.wanted_names(names)
        with self._turn():
            pixels = read_upload(content, self.limits)
            self._look_for(wanted, example, alone)
            self._check_label_map(pixels)
            found = next(self._predictor.stream([pixels]))
            return Answer(
                self.title,
                self._predictor.vocabulary.names,
                _best(found, threshold, topk),
                info={"score_threshold": threshold},
            )

    def ground(
        self, content: bytes, caption: str, threshold: float | None = None, topk: int | None = None
    ) -> Answer:
        """Finds what the phrases of a caption mean; see :meth:`detect`."""
        threshold = self.threshold if threshold is None else check_threshold(threshold)
        caption = self.limits.wanted_caption(caption)
        check_reads_captions(self._predictor.model)
        with self._turn():
            pixels = read_upload(content, self.limits)
            found = self._predictor.ground(pixels, caption)
        prediction = _best(Prediction(UPLOAD, found.image, found.instances), threshold, topk)
        grounding = Grounding(found.image, found.caption, prediction.instances)
        info = {"score_threshold": threshold, "caption": found.caption.caption}
        return Answer(self.title, tuple(found.caption.phrases()), prediction, grounding, info)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Waits until nobody else uses the predictor."""
        if not self._places.acquire(blocking=False):
            raise BusyError(
                f"{self.limits.waiting} requests wait for the model {self.title} already: try "
                "again in a moment."
            )
        try:
            with self._lock:
                yield
        except (MemoryError, torch.OutOfMemoryError):
            raise BusyError(
                "There is not enough memory for this now: try a smaller image."
            ) from None
        finally:
            self._places.release()

    def _check_label_map(self, pixels: np.ndarray) -> None:
        """A label map is (K, H, W) numbers, whatever of it is shown."""
        classes, (height, width) = len(self._predictor.vocabulary or ()), pixels.shape[:2]
        if self._gives_label_maps and classes * height * width > self.limits.label_map:
            raise TooLargeError(
                f"{classes} names in {height} x {width} pixels are too many for {self.title}: use "
                "fewer names or a smaller image."
            )

    def _look_for(self, names: list[str], example: Example | None, alone: bool) -> None:
        """Sets the predictor's vocabulary; the lock must be held."""
        wanted = (tuple(names), alone) if example is None else None
        if wanted is not None and wanted == self._present:
            return
        self._present = None
        if example is not None:
            vocabulary: Any = dict.fromkeys(names) | {example.name: self._seen(example)}
        elif names:
            vocabulary = names
        elif self._trained is None:
            raise OVDError("Say what to look for, as in cat, red mug: the model has no own names.")
        else:
            vocabulary = self._trained
        self._predictor.set_vocabulary(vocabulary, alone=alone)
        self._present = wanted

    def _seen(self, example: Example) -> list[tuple[np.ndarray, Box]]:
        pixels = np.ascontiguousarray(
            np.rot90(read_upload(example.content, self.limits), -example.turns)
        )
        return [(pixels, box) for box in example.boxes]


def _best(found: Prediction, threshold: float, topk: int | None) -> Prediction:
    """What reaches the threshold, ``topk`` at most; label maps as they are."""
    if found.instances is None:
        return found
    kept = found.instances[found.instances.scores >= threshold][:topk]
    return Prediction(UPLOAD, found.image, kept)
