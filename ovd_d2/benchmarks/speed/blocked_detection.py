"""How long detection with very many names takes once regions are embedded: scores in blocks of
classes and the best pairs, beside the bare matrix product of the same size.

Letters: R regions, K classes, D embedding width.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ovd_d2.errors import OVDError
from ovd_d2.layers.row_softmax import row_softmax
from ovd_d2.modeling.roi_heads import top_pairs_inference
from ovd_d2.modeling.roi_heads.blocked_scores import (
    MOST_DENSE_CLASSES,
    BlockedScores,
    Opinion,
    blocks_of,
)

from .detection_postprocessing import (
    BUDGET,
    IMAGE_SIZE,
    NMS_THRESH,
    clustered_boxes,
    peak_memory,
    wait_for,
)

SCORE_THRESH = 1e-4
SCALE = 100.0
KINDS = ("softmax", "sigmoid")
_BACKGROUND = 20.0  # logit of no object; of a random direction 4.4 (standard deviation, D = 512)
_OBJECTS = 40
_ROWS = 1 << 16  # embeddings made at a time


@dataclass
class BlockedCell:
    """What was measured with one number of classes and one kind of scores.

    Attributes:
        num_classes: K.
        kind: of KINDS.
        detections: how many were found.
        seconds: of "ours" and of the "product", run in turn.
        peak_bytes: most memory that ours took at a time beyond embeddings; None where the system
            does not tell.
        same: whether boxes, classes and their order are those of a table of all scores; None for
            more classes than tables are made of.
        difference: largest relative one between the scores and that table.
    """

    num_classes: int
    kind: str
    detections: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak_bytes: int | None = None
    same: bool | None = None
    difference: float | None = None

    def median(self, side: str) -> float:
        """Seconds of a side."""
        return statistics.median(self.seconds[side])

    @property
    def ratio(self) -> float:
        """Our time by that of the product: the median over pairs of runs."""
        pairs = zip(self.seconds["ours"], self.seconds["product"])
        return statistics.median(ours / product for ours, product in pairs)


def measure_blocks(
    num_classes: Sequence[int],
    *,
    proposals: int = 1000,
    dim: int = 512,
    topk: int = 300,
    repeats: int = 5,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[BlockedCell]:
    """Measures detection from embeddings of regions and classes, for each K and kind of scores.

    Half of the regions show one of 40 objects; all directions are random otherwise.

    Args:
        num_classes: the Ks.
        proposals: R.
        dim: D.
        topk: detections per image.
        repeats: timed runs of ours and of the product, in turn, after a first one of ours; fewer
            where they take longer than 20 seconds together.
        device: as torch names it.
        progress: told what is being measured.

    Yields:
        A cell for each K and kind.

    Raises:
        OVDError: embeddings that do not fit into memory.
    """
    boxes = clustered_boxes(proposals).to(device)
    for K in num_classes:
        progress(f"{K} classes: embeddings")
        try:
            classes = class_embeddings(K, dim).to(device)
        except (RuntimeError, MemoryError):
            raise OVDError(
                f"{K} embeddings of {dim} numbers do not fit into memory: ask for fewer classes, "
                "or for narrower embeddings (dim)."
            ) from None
        regions = region_embeddings(classes, proposals)
        for kind in KINDS:
            progress(f"{K} classes: {kind} in blocks")
            yield _measure(kind, regions, classes, boxes, topk, repeats)


def class_embeddings(num_classes: int, dim: int) -> Tensor:
    """(K, D) unit vectors, made without a second copy."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.empty(num_classes, dim)
    for some in rows.split(_ROWS):
        some.normal_(generator=generator)
        some /= some.norm(dim=1, keepdim=True)
    return rows


def region_embeddings(classes: Tensor, proposals: int) -> Tensor:
    """(R, D) unit vectors: the first half in the direction of the classes of 40 objects, at cosines
    around 0.1 to 0.22, as sure of them as a detector; the rest in any direction."""
    generator = torch.Generator().manual_seed(4)
    regions = F.normalize(torch.randn(proposals, classes.shape[1], generator=generator), dim=1)
    owner = torch.arange(proposals // 2) % _OBJECTS
    objects = torch.randint(len(classes), (_OBJECTS,), generator=generator)[owner]
    regions = regions.to(classes.device)
    strength = torch.rand(len(owner), 1, generator=generator) * 0.12 + 0.1
    regions[: len(owner)] += strength.to(classes.device) * classes[objects.to(classes.device)]
    return F.normalize(regions, dim=1)


def _measure(
    kind: str, regions: Tensor, classes: Tensor, boxes: Tensor, topk: int, repeats: int
) -> BlockedCell:
    cell = BlockedCell(len(classes), kind)
    seconds: dict[str, list[float]] = {"ours": [], "product": []}
    found = []

    def ours() -> None:
        found[:] = _detect(boxes, BlockedScores([_opinion(kind, regions, classes)]), topk)

    def product() -> None:
        for block, buffer in blocks_of(regions, len(classes)):
            torch.mm(regions, classes[block].T, out=buffer)

    start = time.perf_counter()
    cell.peak_bytes = peak_memory(lambda: (ours(), wait_for(regions.device)), regions.device)
    spent = time.perf_counter() - start
    for run in range(repeats):
        if run and spent > BUDGET:
            break
        for side, do in (("product", product), ("ours", ours)):
            start = time.perf_counter()
            do()
            wait_for(regions.device)
            seconds[side].append(time.perf_counter() - start)
            spent += seconds[side][-1]
    cell.seconds, cell.detections = seconds, len(found[1])
    if len(classes) <= MOST_DENSE_CLASSES:
        _compare(cell, found, regions, classes, boxes, topk)
    return cell


def _opinion(kind: str, regions: Tensor, classes: Tensor) -> Opinion:
    if kind == "sigmoid":
        return Opinion(regions, classes, SCALE, regions.new_tensor([-_BACKGROUND]), sigmoid=True)
    return Opinion(
        regions, classes, SCALE, background=regions.new_full((len(regions), 1), _BACKGROUND)
    )


def _detect(boxes: Tensor, scores: Tensor | BlockedScores, topk: int) -> tuple[Tensor, ...]:
    ((found,), (rows,)) = top_pairs_inference(
        [boxes], [scores], [IMAGE_SIZE], SCORE_THRESH, NMS_THRESH, topk
    )
    return found.pred_boxes.tensor, found.scores, found.pred_classes, rows


def _compare(
    cell: BlockedCell,
    found: list[Tensor],
    regions: Tensor,
    classes: Tensor,
    boxes: Tensor,
    topk: int,
) -> None:
    """Fills what ``cell`` says of a table of all scores."""
    opinion = _opinion(cell.kind, regions, classes)
    logits = opinion.logits(slice(None), slice(None))
    if cell.kind == "sigmoid":
        table = F.pad(logits.sigmoid(), (0, 1))
    else:
        table = row_softmax(torch.cat([logits, opinion.background], dim=1))
    _, scores, numbers, rows = found
    expected = _detect(boxes, table, topk)
    cell.same = all(torch.equal(found[i], expected[i]) for i in (0, 2, 3))
    cell.difference = float((scores / table[rows, numbers] - 1).abs().max()) if len(rows) else 0.0
