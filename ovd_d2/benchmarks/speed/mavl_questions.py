"""MAVL asked several questions about an image: the image read once, against the public code's way,
the whole model again for each question.

Letters: P questions, Q object queries, R boxes after merging, H, W height and width of the image.
"""

import hashlib
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ovd_d2.benchmarks.speed.detection_postprocessing import peak_memory, wait_for
from ovd_d2.benchmarks.speed.vocabulary_ways import random_model
from ovd_d2.errors import OVDError
from ovd_d2.modeling.query_merging import Merged
from ovd_d2.modeling.text_backbone import (
    TEXT_BACKBONE_REGISTRY,
    HuggingFaceTextBackbone,
)
from ovd_d2.pseudo_labelling import OBJECT_QUERIES
from ovd_d2.structures.grounding import CaptionTokens

SIDES = ("ours", "usual")
ROBERTA = "hf:FacebookAI/roberta-base"  # whose architecture needs no download
_BOX_TOLERANCE, _SCORE_TOLERANCE = 0.1, 1e-4  # rounding, in pixels for boxes


class Found(NamedTuple):
    """What one side finds: (P, Q, 4) boxes, cx cy w h, relative, (P, Q) scores, and merged ones."""

    boxes: Tensor
    scores: Tensor
    merged: Merged


@dataclass
class Measured:
    """What was measured of one model and image.

    Attributes:
        size: (H, W).
        questions: the P questions.
        object_queries: Q.
        boxes: R of the usual side.
        differing: boxes of either side that the other lacks after merging, up to rounding.
        box_difference: largest difference of a side of any of the P x Q boxes, in pixels.
        score_difference: largest difference of any of the P x Q scores.
        seconds: per image, by side: n runs of ours, each between two of n + 1 of the usual side.
        peak_bytes: most memory at a time beyond the model in the first run, by side; None where the
            system does not tell.
    """

    size: tuple[int, int]
    questions: tuple[str, ...]
    object_queries: int
    boxes: int = 0
    differing: int = 0
    box_difference: float = 0.0
    score_difference: float = 0.0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak_bytes: dict[str, int | None] = field(default_factory=dict)

    def median(self, side: str) -> float:
        """Median seconds per image of a side."""
        return statistics.median(self.seconds[side])

    @property
    def ratio(self) -> float:
        """The usual side's time by ours: median over our runs, each by the mean of the two runs
        around it."""
        usual = self.seconds["usual"]
        around = [(before + after) / 2 for before, after in zip(usual, usual[1:])]
        return statistics.median(a / b for a, b in zip(around, self.seconds["ours"], strict=True))


def measure_questions(
    cfg: CfgNode,
    *,
    size: tuple[int, int] = (480, 640),
    questions: Sequence[str] = OBJECT_QUERIES,
    repeats: int = 3,
    progress: Callable[[str], None] = lambda text: None,
) -> Measured:
    """Asks a MAVL of random weights about an image of noise, in both ways in turn.

    Both sides tokenize and encode the questions in every run, and merge as the model does.

    Args:
        cfg: of a MAVL with language.
        size: H, W of the pixels that the model gets.
        questions: P of them.
        repeats: timed runs of our side, after a first one.
        progress: told what is being done.

    Raises:
        OVDError: another kind of model, no questions, or numbers below 1.
    """
    if cfg.MODEL.META_ARCHITECTURE != "MAVL" or not cfg.MODEL.MAVL.LANGUAGE:
        raise OVDError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}; give the config of a MAVL "
            "with language, such as configs/mavl/mavl_r101.yaml."
        )
    if min([repeats, *size]) < 1 or not questions:
        raise OVDError("Pixels and repeats have to be 1 or more, and there must be a question.")
    progress("builds the model")
    model = mavl_of_random_weights(cfg)
    pixels = torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(0))
    image = pixels.to(model.device, torch.float32)
    runs = {
        "ours": lambda: ask_once(model, image, questions),
        "usual": lambda: ask_usually(model, image, questions),
    }
    measured = Measured(tuple(size), tuple(questions), cfg.MODEL.MAVL.OBJECT_QUERIES)
    first: dict[str, Found] = {}

    def keep(side: str) -> None:
        first[side] = runs[side]()

    for side in SIDES:
        progress(f"first run, {side}")
        measured.peak_bytes[side] = peak_memory(lambda side=side: keep(side), model.device)
    _compare(measured, first["ours"], first["usual"])
    measured.seconds = {side: [] for side in SIDES}
    for turn in range(2 * repeats + 1):
        side = SIDES[(turn + 1) % 2]  # usual, ours, usual, ..., usual
        progress(f"run {turn + 1} of {2 * repeats + 1}: {side}")
        wait_for(model.device)
        start = time.perf_counter()
        runs[side]()
        wait_for(model.device)
        measured.seconds[side].append(time.perf_counter() - start)
    return measured


@torch.no_grad()
def ask_once(model: nn.Module, image: Tensor, questions: Sequence[str]) -> Found:
    """Our way: backbone, encoder and decoder once, the questions together through the fusion.

    Args:
        model: a MAVL; questions that it knows already are read again.
        image: (3, H, W) in 0-255.
        questions: P of them.
    """
    model.train(False)  # forgets texts
    (boxes,), (scores,) = model.ask(model.read_images([image]), questions)
    return Found(boxes, scores, model.merging(boxes, scores, tuple(image.shape[1:])))


@torch.no_grad()
def ask_usually(model: nn.Module, image: Tensor, questions: Sequence[str]) -> Found:
    """The public code's way: the whole model on the image for every question by itself."""
    found = []
    for question in questions:
        text = model.read_texts(model.text_backbone.tokenizer([question]))
        found.append(model.predict_queries(model.read_images([image]), text, last_layer_only=True))
    boxes = torch.cat([one["pred_boxes"] for one in found])
    logits = torch.cat([one["pred_logits"] for one in found]).float()
    scores = 1 - logits.softmax(dim=-1)[..., -1]
    return Found(boxes, scores, model.merging(boxes, scores, tuple(image.shape[1:])))


def mavl_of_random_weights(cfg: CfgNode) -> nn.Module:
    """The MAVL of ``cfg``, whose random weights tell object queries and questions apart. Of
    RoBERTa-base of the hub the architecture alone is taken, with a token for each word."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = ""
    if cfg.MODEL.TEXT_BACKBONE.MODEL == ROBERTA:
        cfg.MODEL.TEXT_BACKBONE.NAME = "RandomRobertaBase"
    model = random_model(cfg)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        nn.init.normal_(model.heads.boxes[-1].weight, std=0.1)
        nn.init.normal_(model.heads.classes.weight, std=0.1)
        nn.init.constant_(model.heads.classes.bias, 0.0)
        model.heads.classes.bias[-1] = math.log(model.heads.classes.out_features - 1)
        noise = [torch.randn_like(one, device="cpu") for one in model.fusion.parameters()]
    for parameter, one in zip(model.fusion.parameters(), noise):
        parameter += 0.02 * one.to(parameter)
    return model


@TEXT_BACKBONE_REGISTRY.register()
class RandomRobertaBase(HuggingFaceTextBackbone):
    """RoBERTa-base with random weights and without its tokenizer."""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Model and tokenizer; nothing is read from ``cfg``."""
        from transformers import RobertaConfig, RobertaModel

        settings = RobertaConfig(
            vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5
        )
        model = RobertaModel(settings, add_pooling_layer=False)
        return {"model": model, "tokenizer": WordTokens(settings.vocab_size)}


class WordTokens:
    """In the place of a tokenizer: a token for each word, by its digest, between <s> and </s>.

    Args:
        size: of the vocabulary.
    """

    max_tokens = 512

    def __init__(self, size: int) -> None:
        self._size = size

    def __call__(self, captions: Sequence[str], truncate: bool = False) -> CaptionTokens:
        """Tokens of N captions; offsets are 0."""
        rows = [[0, *map(self._number, caption.split()), 2] for caption in captions]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [1] * (longest - len(row)) for row in rows])
        return CaptionTokens(ids, ids != 1, torch.zeros(*ids.shape, 2, dtype=torch.int64))

    def _number(self, word: str) -> int:
        digest = hashlib.sha256(word.encode()).digest()
        return 4 + int.from_bytes(digest[:4], "big") % (self._size - 4)


def _compare(measured: Measured, ours: Found, usual: Found) -> None:
    """Fills in what both sides found."""
    height, width = measured.size
    scale = ours.boxes.new_tensor([width, height] * 2)
    measured.box_difference = float(((ours.boxes - usual.boxes) * scale).abs().max())
    measured.score_difference = float((ours.scores - usual.scores).abs().max())
    measured.boxes = len(usual.merged.scores)
    measured.differing = differing(ours.merged, usual.merged)


def differing(first: Merged, second: Merged) -> int:
    """Boxes of each side that the other lacks: all sides within 0.1 pixels and scores within 1e-4
    are the same."""
    scale = first.scores.new_tensor([1 / _BOX_TOLERANCE] * 4 + [1 / _SCORE_TOLERANCE])
    one, other = (
        torch.cat([side.boxes, side.scores[:, None]], dim=1) * scale for side in (first, second)
    )
    near = torch.cdist(one.double(), other.double(), p=torch.inf) <= 1  # (R, R')
    return int((~near.any(dim=1)).sum() + (~near.any(dim=0)).sum())
