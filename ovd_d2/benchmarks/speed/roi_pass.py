"""What sharing one pass through pooler and box head saves, for proposals and teacher regions.

Letters: N images.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Boxes
from torch import Tensor

from ovd_d2.benchmarks.speed.train_step import (
    build_offline,
    made_up_batch,
    offline,
    random_boxes,
)
from ovd_d2.errors import OVDError
from ovd_d2.modeling.roi_heads import OpenVocabROIHeadsMixin


@dataclass(frozen=True)
class RoiPartTimes:
    """Seconds of the RoI part, forward and backward; entry r of both lists is of round r.

    Attributes:
        regions: teacher regions per image.
        shared: one pass through pooler and box head for proposals and regions.
        separate: a pass for the proposals and another one for the regions, as in the public code
            of object-centric OVD.
    """

    regions: int
    shared: list[float]
    separate: list[float]

    @property
    def median_ratio(self) -> float:
        """Median of shared / separate over the rounds."""
        return median(a / b for a, b in zip(self.shared, self.separate))


def measure_roi_part(
    cfg: CfgNode,
    regions: Sequence[int],
    *,
    images: int = 0,
    rounds: int = 15,
    progress: Callable[[Sequence[int]], Sequence[int]] = lambda rounds: rounds,
) -> list[RoiPartTimes]:
    """Times pooler and box head, forward and backward, on the features of one made-up batch.

    Args:
        cfg: with one of our ROI heads; of a cascade the last stage's box head is timed.
        regions: teacher regions per image, each > 0, beside ROI_HEADS.BATCH_SIZE_PER_IMAGE
            proposals.
        images: N; 0 for SOLVER.IMS_PER_BATCH.
        rounds: timed ones, after one that is not; both ways in each, in turn.
        progress: wraps the rounds, for a progress bar.

    Raises:
        OVDError: the model is not a ``GeneralizedRCNN`` with our heads.
    """
    cfg, vocabulary = offline(cfg)
    model = build_offline(cfg, vocabulary)
    heads = getattr(model, "roi_heads", None)
    if not isinstance(model, GeneralizedRCNN) or not isinstance(heads, OpenVocabROIHeadsMixin):
        raise OVDError("The RoI part is timed on ovd_d2's ROI heads: give a config with them.")
    batch = made_up_batch(cfg, images or cfg.SOLVER.IMS_PER_BATCH)
    with torch.no_grad():
        inputs = model.preprocess_image(batch).tensor
        features = model.backbone(inputs)
    features = {name: f.detach().requires_grad_() for name, f in features.items()}
    side, count = inputs.shape[-1], cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE

    def boxes(number: int, seed: int) -> list[Boxes]:
        generator = torch.Generator().manual_seed(seed)
        tables = [random_boxes(number, side, generator) for _ in batch]
        return [Boxes(table.to(inputs.device)) for table in tables]

    proposals = boxes(count, 0)
    ways: dict[int, tuple[list[float], list[float]]] = {n: ([], []) for n in regions}
    more = {n: boxes(n, 1) for n in regions}
    for turn in progress(range(-1, rounds)):
        for number, times in ways.items():
            joint = [Boxes.cat(pair) for pair in zip(proposals, more[number])]
            passes = ([joint], [proposals, more[number]])
            for way in (0, 1) if turn % 2 else (1, 0):
                seconds = _timed(heads, features, passes[way])
                if turn >= 0:
                    times[way].append(seconds)
    return [RoiPartTimes(number, *times) for number, times in ways.items()]


def _timed(
    heads: OpenVocabROIHeadsMixin, features: dict[str, Tensor], passes: list[list[Boxes]]
) -> float:
    cuda = next(iter(features.values())).is_cuda
    for feature in features.values():
        feature.grad = None
    heads.zero_grad()
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    # One backward pass through all of them, as in training.
    sum(heads.region_features(heads.pool(features, b)).mean() for b in passes).backward()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start
