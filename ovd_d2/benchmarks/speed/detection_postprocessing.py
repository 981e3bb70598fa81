"""How long it takes to get from boxes and scores to detections, by our way and Detectron2's.

Letters: R proposals, K classes, T pairs (proposal, class) above the score threshold.
"""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Instances
from torch import Tensor

from ovd_d2.errors import OVDError
from ovd_d2.modeling.roi_heads import top_pairs_inference

IMAGE_SIZE = (800, 1333)  # height, width
NMS_THRESH = 0.5
# Score thresholds: every pair counts where scores are dense; Detectron2's for LVIS where sparse.
SCORE_THRESH = {"dense": 0.0, "sparse": 1e-4}
MAX_PAIRS = 5_000_000  # above it Detectron2 takes minutes: only where asked for
BUDGET = 20.0  # seconds; no further repeat of what took longer
SIDES = {"ours": top_pairs_inference, "detectron2": fast_rcnn_inference}


@dataclass
class Cell:
    """What was measured with one number of classes and one kind of scores.

    Attributes:
        num_classes: K.
        scores: "dense" or "sparse".
        pairs: T.
        detections: how many our way returned.
        seconds: of each run after the first, by side ("ours", "detectron2"); of the first where it
            took too long to repeat. A side that was skipped is absent.
        peak_bytes: most memory taken at a time beyond the inputs in the first run, by side; None
            where the system does not tell.
        identical: whether boxes, scores, classes, proposals and their order are equal, bit by bit;
            None where Detectron2 was skipped.
    """

    num_classes: int
    scores: str
    pairs: int
    detections: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak_bytes: dict[str, int | None] = field(default_factory=dict)
    identical: bool | None = None

    def median(self, side: str) -> float | None:
        """Median seconds of a side; None if it was skipped."""
        return statistics.median(self.seconds[side]) if side in self.seconds else None

    @property
    def ratio(self) -> float | None:
        """Detectron2's median time by ours."""
        theirs = self.median("detectron2")
        return None if theirs is None else theirs / self.median("ours")


def measure_inference(
    num_classes: Sequence[int],
    *,
    proposals: int = 1000,
    topk: int = 300,
    repeats: int = 5,
    full: bool = False,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[Cell]:
    """Measures both sides on the same synthetic image, for each K with dense and sparse scores.

    Args:
        num_classes: the Ks.
        proposals: R.
        topk: detections per image.
        repeats: timed runs per side after a first one, the two sides in turn; fewer of a side
            whose runs take longer than 20 seconds together.
        full: run Detectron2 also on more than 5 million pairs, which takes minutes.
        device: as torch names it.
        progress: told what is being measured.

    Yields:
        A cell for each K and kind of scores.

    Raises:
        OVDError: a number below 1, or a device that is not there.
    """
    if min([proposals, topk, repeats, *num_classes], default=0) < 1:
        raise OVDError(
            "Numbers of classes, proposals, detections and repeats have to be 1 or more."
        )
    try:
        boxes = clustered_boxes(proposals).to(device)
    except (RuntimeError, AssertionError) as error:  # unknown name; torch without CUDA
        raise OVDError(f"--device {device}: {str(error).splitlines()[0]}") from None
    for function in SIDES.values():  # what happens once only: threads, libraries
        function([boxes[:2]], [torch.rand(2, 9, device=device)], [IMAGE_SIZE], 0.0, NMS_THRESH, 5)
    for K in num_classes:
        for kind, make in (("dense", dense_scores), ("sparse", sparse_scores)):
            scores = make(proposals, K).to(device)
            pairs = int((scores[:, :-1] > SCORE_THRESH[kind]).sum())
            cell = Cell(K, kind, pairs)
            sides = [s for s in SIDES if s == "ours" or full or pairs <= MAX_PAIRS]
            _measure(cell, sides, boxes, scores, topk, repeats, progress)
            yield cell


def _measure(
    cell: Cell,
    sides: list[str],
    boxes: Tensor,
    scores: Tensor,
    topk: int,
    repeats: int,
    progress: Callable[[str], None],
) -> None:
    """Fills ``cell``."""
    arguments = ([boxes], [scores], [IMAGE_SIZE], SCORE_THRESH[cell.scores], NMS_THRESH, topk)
    first, found = {}, {}
    for side in sides:
        progress(f"{cell.num_classes} classes, {cell.scores} scores: {side}")

        def run(side: str = side) -> None:
            start = time.perf_counter()
            found[side] = SIDES[side](*arguments)
            wait_for(boxes.device)
            first[side] = time.perf_counter() - start

        cell.peak_bytes[side] = peak_memory(run, boxes.device)
    cell.seconds = {side: [] for side in sides}
    for _ in range(repeats):
        for side in sides:
            if first[side] + sum(cell.seconds[side]) < BUDGET:
                start = time.perf_counter()
                SIDES[side](*arguments)
                wait_for(boxes.device)
                cell.seconds[side].append(time.perf_counter() - start)
    for side in sides:
        cell.seconds[side] = cell.seconds[side] or [first[side]]
    cell.detections = len(found["ours"][0][0])
    if "detectron2" in found:
        cell.identical = _identical(found["ours"], found["detectron2"])


def _identical(
    first: tuple[list[Instances], list[Tensor]], second: tuple[list[Instances], list[Tensor]]
) -> bool:
    (a,), (rows_a,) = first
    (b,), (rows_b,) = second
    return (
        torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        and torch.equal(a.scores, b.scores)
        and torch.equal(a.pred_classes, b.pred_classes)
        and torch.equal(rows_a, rows_b)
    )


def wait_for(device: torch.device) -> None:
    """Until a GPU has done what it was told; a CPU has already."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clustered_boxes(proposals: int) -> Tensor:
    """(R, 4) float32: the first half around 40 objects, as a detector's; the rest anywhere."""
    generator = torch.Generator().manual_seed(0)
    extent = torch.tensor([IMAGE_SIZE[1], IMAGE_SIZE[0]], dtype=torch.float32)
    centres = torch.rand(40, 2, generator=generator) * extent
    sizes = torch.rand(40, 2, generator=generator) * 250 + 20
    owner = torch.arange(proposals // 2) % 40
    jitter = torch.randn(len(owner), 4, generator=generator) * 0.12
    near = centres[owner] + jitter[:, :2] * sizes[owner]
    extents = sizes[owner] * jitter[:, 2:].exp()
    others = proposals - len(owner)
    near = torch.cat([near, torch.rand(others, 2, generator=generator) * extent])
    extents = torch.cat([extents, torch.rand(others, 2, generator=generator) * 300 + 10])
    return torch.cat([near - extents / 2, near + extents / 2], dim=1)


def dense_scores(proposals: int, num_classes: int) -> Tensor:
    """(R, K + 1): softmax of standard normal logits. No score is 0."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(proposals, num_classes + 1, generator=generator).softmax(dim=1)


def sparse_scores(proposals: int, num_classes: int) -> Tensor:
    """(R, K + 1): as a trained detector with a sigmoid per class: nearly all about 1e-6; the
    proposals around an object score its class high and five others a little; the rest of the
    proposals score three classes a little."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(proposals, num_classes + 1, generator=generator) - 14
    near = torch.arange(proposals // 2)
    object_classes = torch.randint(num_classes, (40, 6), generator=generator)[near % 40]
    high = torch.rand(len(near), 6, generator=generator) * 4
    high += torch.tensor([-1.0] + [-8.0] * 5)
    logits[near[:, None], object_classes] = high
    rest = torch.arange(proposals // 2, proposals)
    classes = torch.randint(num_classes, (len(rest), 3), generator=generator)
    logits[rest[:, None], classes] = torch.randn(len(rest), 3, generator=generator) - 8
    return logits.sigmoid()


def peak_memory(run: Callable[[], None], device: torch.device) -> int | None:
    """Bytes that ``run`` took at its peak beyond what was taken before it.

    On CUDA by torch's allocator; on a CPU by the kernel's high-water mark of the resident memory,
    None where it cannot be reset (other systems than Linux).
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # memory that is free but still held would hide a need
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to VmRSS
        before = _status_bytes("VmRSS")
    except (AttributeError, OSError, TypeError):
        run()
        return None
    run()
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(name: str) -> int:
    """A memory line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))
