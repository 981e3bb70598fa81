"""GLIP with vocabularies of any size, against the usual way: the whole model again per caption.

Letters: K classes of the vocabulary, P captions of it, L tokens, R detections, H x W image.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ovd_d2.benchmarks.speed.detection_postprocessing import peak_memory, wait_for
from ovd_d2.errors import OVDError
from ovd_d2.language import LATER, Vocabulary
from ovd_d2.language.caption_prompts import Prompt
from ovd_d2.language.imagenet_names import extend_with_imagenet21k
from ovd_d2.modeling.dense_heads import HeadOutputs, class_scores
from ovd_d2.structures.grounding import CaptionTokens

NAMES_PER_CAPTION = 40  # of the public code on LVIS
SAMPLE = 3  # captions that stand for all of the usual way
BUDGET = 20.0  # seconds; no further repeat of what took longer
PAIRS = 500  # of an anchor and a class above the score threshold, in the first caption
LOG_SCALE = -3.0  # of the alignment: without it random weights score all anchors nearly the same
_LVIS = "lvis_v1_val"
_SCORE_TOLERANCE, _BOX_TOLERANCE = 1e-4, 0.1  # rounding, in pixels for boxes
# What our side does: deep fusion or late, and the most names in a caption (0: as many as fit).
WAYS = {
    "same captions": (True, NAMES_PER_CAPTION),
    "packed captions": (True, 0),
    "late fusion": (False, NAMES_PER_CAPTION),
}


@dataclass
class Cell:
    """One way of ours with one vocabulary, beside the usual way.

    Attributes:
        num_classes: K.
        way: of ``WAYS``.
        captions: P of our side.
        usual_captions: P of the usual way.
        usual_run: how many of them were run; the seconds of the others are taken to be the same.
        text_seconds: our text backbone on all captions, once for a vocabulary; not in ``seconds``.
        seconds: per image, of each run, by side ("ours", "usual").
        peak_bytes: most memory taken at a time beyond the model in the first run, by side; None
            where the system does not tell.
        detections: of the usual way in the captions that were run.
        differing: detections of either side in these captions that the other lacks, up to
            rounding; None where the captions are others.
    """

    num_classes: int
    way: str
    captions: int
    usual_captions: int
    usual_run: int
    text_seconds: float = 0.0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak_bytes: dict[str, int | None] = field(default_factory=dict)
    detections: int = 0
    differing: int | None = None

    def median(self, side: str) -> float:
        """Median seconds per image of a side."""
        return statistics.median(self.seconds[side])

    @property
    def ratio(self) -> float:
        """The usual way's median time by ours."""
        return self.median("usual") / self.median("ours")


def measure_vocabulary(
    cfg: CfgNode,
    num_classes: Sequence[int],
    *,
    size: tuple[int, int] = (480, 640),
    repeats: int = 3,
    full: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[Cell]:
    """Detects the classes of each vocabulary in one image of noise, both ways in turn.

    Both sides use the same modules and random weights, so what is compared is what our side shares
    between captions: backbone and FPN, text that was read once, batches, captions of their true
    length, and with late fusion the tower. The usual way, as the public code: for each caption of
    40 names, padded to all tokens of the text encoder, backbone, FPN, text encoder and head.

    Args:
        cfg: of a GLIP; ``MODEL.GLIP.FUSION``, the vocabulary and the number of detections are set
            in here.
        num_classes: the Ks; up to 1203 names of LVIS, then of ImageNet-21K.
        size: H, W.
        repeats: timed runs of each side, in turn, after a first one; fewer of a side whose runs
            take longer than 20 seconds together.
        full: run the usual way on all captions, not on three.
        progress: told what is being measured.

    Yields:
        A cell for each K and way, deep fusion first.

    Raises:
        OVDError: a number below 1, a model of another kind, or more than 1203 classes without timm.
    """
    if min([repeats, *size, *num_classes], default=0) < 1:
        raise OVDError("Numbers of classes, pixels and repeats have to be 1 or more.")
    if cfg.MODEL.META_ARCHITECTURE != "GLIP":
        raise OVDError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}; give the config of a GLIP, "
            "such as configs/glip/glip_t_b.yaml."
        )
    vocabularies = [class_names(K) for K in num_classes]
    pixels = torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(0))
    for fusion in (True, False):
        progress(f"builds the model with {'deep' if fusion else 'late'} fusion")
        model = random_model(cfg, fusion=fusion)
        image = pixels.to(model.device, torch.float32)
        ways = {way: names for way, (deep, names) in WAYS.items() if deep == fusion}
        for names in vocabularies:
            yield from _measure(model, image, names, ways, repeats, full, progress)


def class_names(number: int) -> list[str]:
    """The first K names of LVIS, then names of ImageNet-21K that LVIS does not have."""
    vocabulary = Vocabulary.from_metadata(_LVIS)
    if number > len(vocabulary):
        vocabulary = extend_with_imagenet21k(vocabulary, number - len(vocabulary))
    return list(vocabulary.names[:number])


def random_model(cfg: CfgNode, *, fusion: bool) -> nn.Module:
    """The GLIP of ``cfg`` with random weights, whose detections are not limited in number."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.GLIP.FUSION = fusion
    cfg.MODEL.OPEN_VOCAB.VOCABULARY = LATER
    cfg.TEST.DETECTIONS_PER_IMAGE = 1_000_000
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(cfg).eval().requires_grad_(False)
    model.head.alignment.log_scale.fill_(LOG_SCALE)
    return model


def detect_usually(model: nn.Module, image: Tensor, prompts: Sequence[Prompt]) -> Instances:
    """Detections of one image, the whole model again for every caption.

    Args:
        model: a GLIP.
        image: (3, H, W) in 0-255.
        prompts: captions of the vocabulary, or some of them.

    Returns:
        Those of all captions, one behind the other.
    """
    found = []
    for prompt in prompts:
        anchors, outputs, tokens, size = _outputs(model, image, prompt)
        maps = [prompt.spans.token_map(tokens.offsets[0])]
        numbers = [prompt.class_numbers.to(model.device)]
        candidates = model.head.candidates(anchors, outputs, [size], maps, numbers)
        found += model.head.select(candidates, [size])
    return Instances.cat(found)


@torch.no_grad()
def _outputs(
    model: nn.Module, image: Tensor, prompt: Prompt
) -> tuple[list[Boxes], HeadOutputs, CaptionTokens, tuple[int, int]]:
    """The whole model on one image and one caption, padded to all tokens."""
    tokens = model.text_backbone.tokenizer([prompt.spans.caption])
    padding = model.text_backbone.tokenizer.max_tokens - tokens.ids.shape[1]
    tokens = CaptionTokens(
        F.pad(tokens.ids, (0, padding)),
        F.pad(tokens.mask, (0, padding)),
        F.pad(tokens.offsets, (0, 0, 0, padding)),
    ).to(model.device)
    pixels = (image - model.pixel_mean) / model.pixel_std
    images = ImageList.from_tensors([pixels], model.backbone.size_divisibility)
    maps = model.backbone(images.tensor)
    features = [maps[name] for name in model.in_features]
    outputs = model.head(features, model.text_backbone(tokens), tokens.mask)
    return model.anchor_generator(features), outputs, tokens, images.image_sizes[0]


def _measure(
    model: nn.Module,
    image: Tensor,
    names: list[str],
    ways: dict[str, int],
    repeats: int,
    full: bool,
    progress: Callable[[str], None],
) -> Iterator[Cell]:
    """The cells of one model and one vocabulary."""
    prompts = model.prompts.for_vocabulary(names, NAMES_PER_CAPTION)
    run = prompts if full else prompts[:: -(-len(prompts) // SAMPLE)]
    _set_threshold(model, image, prompts[0])
    usual = partial(detect_usually, model, image, run)
    progress(f"{len(names)} classes: the usual way")
    expected, _, usual_peak = _first(usual, model.device)
    for way, per_caption in ways.items():
        progress(f"{len(names)} classes: {way}")
        model.names_per_caption = per_caption
        model.set_vocabulary(names)
        ours = partial(model, [{"image": image}])
        with _clock(model.text_backbone, model.device) as text:
            found, first, peak = _first(ours, model.device)
        captions = len(model.prompts.for_vocabulary(names, per_caption or None))
        cell = Cell(len(names), way, captions, len(prompts), len(run), sum(text))
        cell.peak_bytes = {"ours": peak, "usual": usual_peak}
        cell.detections = len(expected)
        if per_caption == NAMES_PER_CAPTION:
            shown = torch.cat([prompt.class_numbers for prompt in run]).to(model.device)
            found = found[0]["instances"]
            cell.differing = differing(expected, found[torch.isin(found.pred_classes, shown)])
        spent = {"usual": 0.0, "ours": first}
        cell.seconds = {"usual": [], "ours": []}
        for _ in range(repeats):
            for side, function in (("usual", usual), ("ours", ours)):
                if spent[side] < BUDGET:
                    seconds = _timed(function, model.device)[1]
                    spent[side] += seconds
                    cell.seconds[side].append(seconds)
        cell.seconds["ours"] = cell.seconds["ours"] or [first - cell.text_seconds]
        cell.seconds["usual"] = [s * len(prompts) / len(run) for s in cell.seconds["usual"]]
        yield cell


def _set_threshold(model: nn.Module, image: Tensor, prompt: Prompt) -> None:
    """Random scores are low: the threshold becomes what ``PAIRS`` pairs of an anchor and a class of
    the caption reach."""
    _, outputs, tokens, _ = _outputs(model, image, prompt)
    token_map = prompt.spans.token_map(tokens.offsets[0])
    scores = class_scores(outputs.token_logits[0, 0].sigmoid(), token_map).flatten()
    threshold = scores.topk(min(PAIRS, len(scores))).values[-1]
    model.head.inference.score_threshold = float(threshold)


def differing(first: Instances, second: Instances) -> int:
    """Detections of each side that the other lacks: of one class, scores within 1e-4 and all sides
    of the boxes within 0.1 pixels are the same."""
    scale = first.scores.new_tensor([1 / _BOX_TOLERANCE] * 4 + [1 / _SCORE_TOLERANCE, 4.0])
    first, second = (
        torch.cat([x.pred_boxes.tensor, x.scores[:, None], x.pred_classes[:, None]], 1) * scale
        for x in (first, second)
    )
    near = torch.cdist(first.double(), second.double(), p=torch.inf) <= 1  # (R, R')
    return int((~near.any(dim=1)).sum() + (~near.any(dim=0)).sum())


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
