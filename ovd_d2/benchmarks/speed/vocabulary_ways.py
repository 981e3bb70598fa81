"""One way to look for a vocabulary in an image, timed in turn with what it is compared with.

Letters: K classes of the vocabulary, P captions of it.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import Tensor, nn

from ovd_d2.benchmarks.speed.detection_postprocessing import peak_memory, wait_for
from ovd_d2.errors import OVDError
from ovd_d2.language import LATER, Vocabulary
from ovd_d2.language.concept_dictionary import ConceptDictionary
from ovd_d2.language.prompts import clean_name

BUDGET = 20.0  # seconds; no further repeat of what took longer
PAIRS = 500  # of an anchor and one of the first 40 classes above the score threshold
USUAL = "usual way"  # what GLIP is compared with: the whole model again per caption
_LVIS = "lvis_v1_val"


@dataclass
class Way:
    """What a model does with one vocabulary, and what it is compared with.

    Attributes:
        model: "GLIP" or "DetCLIP".
        name: of the way.
        beside: name of what it is compared with.
        left_out: takes too long, and nobody asked for it; then all that follows is empty.
        encode: makes the model read the vocabulary, once.
        text: the part of the model that then reads it.
        detect: our side on the image: the list of dicts that the model returns.
        detect_beside: the other side on the image.
        compare: counts detections that differ between the results of the other side and ours; None
            where they have to.
        captions: P of our side; None: it has no captions.
        usual_captions: P of the other side.
        usual_run: how many of them are run; the seconds of the others are taken to be the same.
    """

    model: str
    name: str
    beside: str
    left_out: bool = False
    encode: Callable[[], Any] | None = None
    text: nn.Module | None = None
    detect: Callable[[], list[dict[str, Instances]]] | None = None
    detect_beside: Callable[[], Any] | None = None
    compare: Callable[[Any, Instances], int] | None = None
    captions: int | None = None
    usual_captions: int | None = None
    usual_run: int | None = None


class Subject(Protocol):
    """A model whose time with vocabularies is measured."""

    @property
    def device(self) -> torch.device:
        """Where it is."""

    def ways(self, image: Tensor, names: list[str]) -> Iterator[Way]:
        """Its ways with one vocabulary; each is to be measured before the next is drawn.

        Args:
            image: (3, H, W) in 0-255, on ``device``.
            names: the K classes.
        """


@dataclass
class Cell:
    """A way with one vocabulary, measured.

    Attributes:
        num_classes: K.
        model: see :class:`Way`, as ``way`` (its name), ``beside``, ``left_out``, ``captions``,
            ``usual_captions`` and ``usual_run``.
        text_seconds: to encode the vocabulary, once; not in ``seconds``.
        seconds: per image, by side ("ours", "beside"): n runs of ours, each between two of n + 1 of
            the other side. Empty if the way was left out.
        peak_bytes: most memory taken at a time beyond model and encoded vocabulary in the first
            run, by side; None where the system does not tell.
        detections: of the other side in the captions that were run, or else of ours.
        differing: detections of either side in these captions that the other lacks, up to
            rounding; None where they are not compared.
    """

    num_classes: int
    model: str
    way: str
    beside: str
    left_out: bool = False
    captions: int | None = None
    usual_captions: int | None = None
    usual_run: int | None = None
    text_seconds: float = 0.0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak_bytes: dict[str, int | None] = field(default_factory=dict)
    detections: int = 0
    differing: int | None = None

    def median(self, side: str) -> float:
        """Median seconds per image of a side."""
        return statistics.median(self.seconds[side])

    @property
    def ratio(self) -> float | None:
        """The other side's time by ours: the median over our runs, each by the mean of the two
        runs around it, so that a machine that gets slower changes nothing; None if left out."""
        if self.left_out:
            return None
        ours, beside = self.seconds["ours"], self.seconds["beside"]
        around = [(before + after) / 2 for before, after in zip(beside, beside[1:])]
        return statistics.median(other / own for other, own in zip(around, ours, strict=True))


def measure_way(way: Way, num_classes: int, repeats: int, device: torch.device) -> Cell:
    """Runs a way and what it is compared with on the image.

    Args:
        way: not measured yet.
        num_classes: K.
        repeats: timed runs of ours, after a first one; fewer where the runs of a side take longer
            than 20 seconds together, and the first one alone where it does.
        device: of the model.
    """
    cell = Cell(
        num_classes, way.model, way.name, way.beside, way.left_out, way.captions,
        way.usual_captions, way.usual_run,
    )  # fmt: skip
    if way.left_out:
        return cell
    with _clock(way.text, device) as text:
        way.encode()
    cell.text_seconds = sum(text)
    other, other_first, other_peak = _first(way.detect_beside, device)
    found, first, peak = _first(way.detect, device)
    cell.peak_bytes = {"ours": peak, "beside": other_peak}
    instances = found[0]["instances"]
    cell.detections = len(instances)
    if way.compare is not None:
        cell.detections, cell.differing = len(other), way.compare(other, instances)
    cell.seconds = _in_turn(way, repeats, first, other_first, device)
    if way.usual_run is not None:
        share = way.usual_captions / way.usual_run
        cell.seconds["beside"] = [seconds * share for seconds in cell.seconds["beside"]]
    return cell


def _in_turn(
    way: Way, repeats: int, first: float, other_first: float, device: torch.device
) -> dict[str, list[float]]:
    """Seconds by side: the other, ours, the other, ours, ..., the other."""
    if first > BUDGET:
        after = _timed(way.detect_beside, device)[1]
        return {"ours": [first], "beside": [other_first, after]}
    before = other_first if other_first > BUDGET else _timed(way.detect_beside, device)[1]
    ours, beside = [], [before]
    while not ours or (len(ours) < repeats and max(sum(ours), sum(beside)) < BUDGET):
        ours.append(_timed(way.detect, device)[1])
        beside.append(_timed(way.detect_beside, device)[1])
    return {"ours": ours, "beside": beside}


def random_model(cfg: CfgNode) -> nn.Module:
    """The model of ``cfg`` without classes, with random weights, the same each time, whose
    detections are not limited in number."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.OPEN_VOCAB.VOCABULARY = LATER
    cfg.MODEL.SWIN.CHECKPOINT = False  # for training
    cfg.TEST.DETECTIONS_PER_IMAGE = 1_000_000
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model(cfg).eval().requires_grad_(False)


def class_names(number: int) -> list[str]:
    """The first K names of LVIS, then those of ImageNet-21K that are others, then its synonyms.

    Raises:
        OVDError: more than there are, or more than LVIS has and no timm.
    """
    names = list(Vocabulary.from_metadata(_LVIS).names)
    if number > len(names):
        taken = {clean_name(name) for name in names}
        more = ConceptDictionary.load("imagenet21k").names
        names += [name for name in more if name not in taken]
    if number > len(names):
        raise OVDError(f"There are {len(names)} names for {number} classes: ask for fewer.")
    return names[:number]


def threshold_for(scores: Tensor) -> float:
    """The score that ``PAIRS`` of these pairs reach: those of random weights are all low."""
    return float(scores.flatten().topk(min(PAIRS, scores.numel())).values[-1])


def _timed(function: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """What it returns, and its seconds."""
    wait_for(device)
    start = time.perf_counter()
    result = function()
    wait_for(device)
    return result, time.perf_counter() - start


def _first(function: Callable[[], Any], device: torch.device) -> tuple[Any, float, int | None]:
    """Result, seconds and most bytes at a time."""
    kept = []
    peak = peak_memory(lambda: kept.append(_timed(function, device)), device)
    return *kept[0], peak


@contextmanager
def _clock(module: nn.Module, device: torch.device) -> Iterator[list[float]]:
    """A list that gets the seconds of every call of ``module``."""
    starts, seconds = [], []

    def before(*_: Any) -> None:
        wait_for(device)
        starts.append(time.perf_counter())

    def after(*_: Any) -> None:
        wait_for(device)
        seconds.append(time.perf_counter() - starts.pop())

    hooks = [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()
