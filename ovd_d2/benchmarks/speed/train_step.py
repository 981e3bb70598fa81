"""What a teacher's regions cost: training steps with and without them, side by side.

Letters: Ri teacher regions of image i, D embedding width.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles

import torch
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ovd_d2.data.mappers.target_rows import followed_by
from ovd_d2.engine.optimizer import build_optimizer
from ovd_d2.engine.train_loop import TrainLoop, amp_dtype
from ovd_d2.engine.trainer import OpenVocabTrainer
from ovd_d2.errors import OVDError
from ovd_d2.language import LATER, RandomEmbeddings, Vocabulary
from ovd_d2.modeling import is_open_vocabulary, set_vocabulary
from ovd_d2.modeling.open_vocabulary import part_with
from ovd_d2.structures import Supervision

OBJECTS = 5  # boxes of an image; the mini benchmark has 3 to 7, LVIS 13


PLAIN = -1  # in place of a number of regions: Detectron2's own heads and RPN
# Our heads -> those of Detectron2 that they extend.
_STOCK_HEADS = {
    "OpenVocabROIHeads": "StandardROIHeads",
    "OpenVocabCascadeROIHeads": "CascadeROIHeads",
    "OpenVocabRes5ROIHeads": "Res5ROIHeads",
}


@dataclass
class StepTimes:
    """Seconds of the timed steps; entry r of every list is of round r.

    Attributes:
        config: what was measured.
        seconds: teacher regions per image (or PLAIN) -> seconds of a step, one entry per round.
    """

    config: str
    seconds: dict[int, list[float]] = field(default_factory=dict)

    def ratios(self, regions: int, reference: int = 0) -> list[float]:
        """Per round: a step with ``regions`` over the step of that round with ``reference``."""
        pairs = zip(self.seconds[regions], self.seconds[reference])
        return [with_ / without for with_, without in pairs]

    def median_ratio(self, regions: int, reference: int = 0) -> float:
        """Median of :meth:`ratios`."""
        return median(self.ratios(regions, reference))

    def spread(self, regions: int, reference: int = 0) -> tuple[float, float]:
        """First and third quartile of :meth:`ratios`."""
        ratios = self.ratios(regions, reference)
        if len(ratios) < 2:
            return ratios[0], ratios[0]
        low, _, high = quantiles(ratios, n=4, method="inclusive")
        return low, high

    def table(self) -> list[dict]:
        """One row per number of regions: times, ratios to the step without any, and to PLAIN's."""
        return [
            {
                "regions": count,
                "median_seconds": median(seconds),
                "median_ratio": self.median_ratio(count),
                "quartiles": self.spread(count),
                "median_ratio_to_plain": self.median_ratio(count, PLAIN),
                "quartiles_to_plain": self.spread(count, PLAIN),
            }
            for count, seconds in self.seconds.items()
        ]


def measure_step(
    cfg: CfgNode,
    name: str,
    *,
    regions: Sequence[int] = (5, 300),
    images: int = 0,
    rounds: int = 15,
    progress: Callable[[Sequence[int]], Sequence[int]] = lambda rounds: rounds,
) -> StepTimes:
    """Times forward, backward and optimizer step on one made-up batch.

    In every round each number of regions, and the same detector with Detectron2's own heads, has
    its step (in one order, then in the other), so that whatever slows the machine for a while
    slows all of them. Weights, images, boxes and random numbers are
    the same; the pictures are noise and the embeddings random, which changes no amount of work.

    Args:
        cfg: a config that learns from teacher regions; no data set, store, encoder or checkpoint
            is read. SyncBN is BN on a CPU.
        name: for the result.
        regions: teacher regions per image, each > 0; 0 is always measured.
        images: per batch; 0 for SOLVER.IMS_PER_BATCH.
        rounds: timed ones, after two that are not.
        progress: wraps the rounds, for a progress bar.

    Raises:
        OVDError: numbers below 1, or a model that does not learn from teacher regions.
    """
    if rounds < 1 or images < 0 or any(count < 1 for count in regions):
        raise OVDError("Rounds, images and regions have to be 1 or more.")
    cfg, vocabulary = offline(cfg)
    source = _Repeated()
    ours = _train_loop(cfg, vocabulary, source)
    learner = part_with(ours.model, "needs_teacher_regions")
    if learner is None or not learner.needs_teacher_regions:
        raise OVDError(
            "This config does not learn from teacher regions: give one with "
            "MODEL.REGION_DISTILLATION.WEIGHT, such as configs/mini/vild.yaml."
        )
    batch = made_up_batch(cfg, images or cfg.SOLVER.IMS_PER_BATCH)
    counts = [PLAIN, 0, *regions]
    loops = dict.fromkeys(counts, ours) | {
        PLAIN: _train_loop(_plain(cfg, len(vocabulary)), vocabulary, source)
    }
    batches = {count: _with_regions(batch, max(count, 0), cfg) for count in counts}
    batches[PLAIN] = batch
    result = StepTimes(name, {count: [] for count in counts})
    with EventStorage():
        for turn in progress(range(-2, rounds)):
            for count in counts if turn % 2 else reversed(counts):
                source.batch = batches[count]
                seconds = _timed_step(loops[count])
                if turn >= 0:
                    result.seconds[count].append(seconds)
    return result


def offline(cfg: CfgNode) -> tuple[CfgNode, Vocabulary]:
    """``cfg`` without what a bench should not wait for, for :func:`build_offline`, and its
    classes."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = ""
    cfg.SOLVER.BASE_LR = 1e-8  # the work of a step, but the weights stay as they are
    if cfg.MODEL.DEVICE == "cpu":
        for section in (cfg.MODEL.RESNETS, cfg.MODEL.FPN, cfg.MODEL.ROI_BOX_HEAD,
                        cfg.MODEL.ROI_MASK_HEAD):  # fmt: skip
            section.NORM = section.NORM.replace("SyncBN", "BN")
    open_vocab = cfg.MODEL.OPEN_VOCAB
    vocabulary = Vocabulary.load(open_vocab.VOCABULARY or f"dataset:{cfg.DATASETS.TRAIN[0]}")
    open_vocab.VOCABULARY, open_vocab.TEXT_EMBEDDINGS = LATER, ""
    cfg.DATASETS.TRAIN, cfg.DATASETS.SOURCES = (), []  # the batch is of neither
    return cfg, vocabulary


def build_offline(cfg: CfgNode, vocabulary: Vocabulary) -> nn.Module:
    """The model of ``cfg``, in training mode, with random class embeddings."""
    torch.manual_seed(0)
    model = OpenVocabTrainer.build_model(cfg).train()
    if is_open_vocabulary(model):
        set_vocabulary(model, vocabulary, RandomEmbeddings(cfg.MODEL.OPEN_VOCAB.EMBED_DIM))
    return model


def _plain(cfg: CfgNode, num_classes: int) -> CfgNode:
    """The same detector without anything of ours: a closed set of as many classes."""
    cfg = cfg.clone()
    cfg.MODEL.ROI_HEADS.NAME = _STOCK_HEADS.get(cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.NAME)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = False  # it would read a data set's json
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "RPN"
    return cfg


class _Repeated:
    """A data loader that hands out the same batch until it gets another."""

    batch: list[dict]

    def __iter__(self) -> Iterator[list[dict]]:
        while True:
            yield self.batch


def _train_loop(cfg: CfgNode, vocabulary: Vocabulary, source: _Repeated) -> TrainLoop:
    model = build_offline(cfg, vocabulary)
    amp = cfg.SOLVER.AMP
    loop = TrainLoop(
        model,
        source,
        build_optimizer(cfg, model),
        device_type=model.device.type,
        autocast_dtype=amp_dtype(amp.DTYPE, model.device.type) if amp.ENABLED else None,
    )
    loop.iter = 0
    return loop


def made_up_batch(cfg: CfgNode, images: int) -> list[dict]:
    """Training samples of noise with OBJECTS boxes each, of the largest size of ``cfg``."""
    jitter = cfg.INPUT.SCALE_JITTER
    side = jitter.SIZE if jitter.ENABLED else cfg.INPUT.MIN_SIZE_TRAIN[-1]
    generator = torch.Generator().manual_seed(0)
    return [_sample(side, cfg.MODEL.MASK_ON, generator) for _ in range(images)]


def _sample(side: int, with_masks: bool, generator: torch.Generator) -> dict:
    targets = Instances((side, side))
    targets.gt_boxes = Boxes(random_boxes(OBJECTS, side, generator))
    targets.gt_classes = torch.zeros(OBJECTS, dtype=torch.int64)
    if with_masks:
        masks = torch.zeros(OBJECTS, side, side, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, targets.gt_boxes.tensor.long().tolist()):
            mask[y0:y1, x0:x1] = True
        targets.gt_masks = BitMasks(masks)
    image = torch.randint(0, 256, (3, side, side), generator=generator, dtype=torch.uint8)
    return {"image": image, "instances": targets, "height": side, "width": side}


def random_boxes(count: int, side: int, generator: torch.Generator) -> Tensor:
    """(count, 4), sides of a tenth to a half of the image."""
    size = side * (0.1 + 0.4 * torch.rand(count, 2, generator=generator))
    corner = (side - size) * torch.rand(count, 2, generator=generator)
    return torch.cat([corner, corner + size], dim=1)


def _with_regions(batch: list[dict], count: int, cfg: CfgNode) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    dim = cfg.MODEL.OPEN_VOCAB.EMBED_DIM
    return [
        {**sample, "instances": _rows(sample["instances"], count, dim, generator)}
        for sample in batch
    ]


def _rows(targets: Instances, count: int, dim: int, generator: torch.Generator) -> Instances:
    """``targets`` and regions of a made-up teacher."""
    boxes = random_boxes(count, targets.image_size[0], generator)
    none = torch.full((count,), -1)
    rows = followed_by(targets, boxes, none, Supervision.TEACHER_REGION)
    embeddings = torch.randn(len(rows), dim, generator=generator)
    rows.teacher_embedding = nn.functional.normalize(embeddings, dim=1).half()
    return rows


def _timed_step(loop: TrainLoop) -> float:
    cuda = loop.device_type == "cuda"
    torch.manual_seed(0)
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    loop.run_step()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start
