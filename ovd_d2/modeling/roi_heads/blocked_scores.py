"""Scores of regions for very many classes, a block of classes at a time: never R x K at once.

Letters: R regions of an image, K classes, D embedding width, m regions and n classes asked for, T
pairs of a region and a run of classes.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

# More classes than these are scored in blocks: 1000 proposals would hold 50 million logits and as
# many probabilities, 400 MB. The number of classes decides alone, so that what is found in an image
# does not depend on those it is batched with.
MOST_DENSE_CLASSES = 50_000
RUN = 64  # classes whose maximum is kept, which bounds the best pairs
_BLOCK_BYTES = {"cpu": 4 << 20}  # of logits: what a core's cache takes; else enough to fill a GPU
_BLOCK_BYTES_ELSEWHERE = 256 << 20
_RUNS_AT_ONCE = 64  # runs that are scored again together
_LEAST_ROWS = 16  # BLAS takes another way for a few rows, which rounds otherwise

Rows = Tensor | slice
Combination = Callable[[list[Tensor], Rows, Rows], Tensor]


@dataclass
class Opinion:
    """What one classifier says of R regions: logits ``scale * regions . classes + bias``.

    Attributes:
        regions: (R, D) fp32.
        classes: (K, D) fp32.
        scale: factor on the products.
        bias: (1,), added to all logits; None: 0.
        background: (R, 1) logits of one more class in the softmax; None: none.
        sigmoid: a probability per class instead of a softmax.
        largest: (R, 1) largest logit, once :meth:`look` has seen all.
        total: (R, 1) fp64 sum of exp(logit - largest), of a softmax.
    """

    regions: Tensor
    classes: Tensor
    scale: float
    bias: Tensor | None = None
    background: Tensor | None = None
    sigmoid: bool = False
    largest: Tensor | None = None
    total: Tensor | None = None

    def of_rows(self, rows: Tensor) -> "Opinion":
        """That of some regions, int64 or bool."""
        parts = {name: getattr(self, name) for name in ("background", "largest", "total")}
        parts = {name: None if part is None else part[rows] for name, part in parts.items()}
        return replace(self, regions=self.regions[rows], **parts)

    def logits(self, rows: Rows, classes: Rows, out: Tensor | None = None) -> Tensor:
        """(m, n) of some regions and classes."""
        logits = torch.mm(self.regions[rows], self.classes[classes].T, out=out).mul_(self.scale)
        return logits if self.bias is None else logits.add_(self.bias)

    def probabilities(self, logits: Tensor, rows: Rows) -> Tensor:
        """(m, n) from :meth:`logits`, which are overwritten; of a softmax after :meth:`look`."""
        if self.sigmoid:
            return logits.sigmoid_()
        return logits.sub_(self.largest[rows]).exp_().div_(self.total[rows].float())

    def look(self, maxima: Tensor | None = None) -> None:
        """Passes over all logits once for what a softmax is divided by.

        Args:
            maxima: (R, ceil(K / RUN)), filled with the largest logits of runs; None: not wanted,
                and then a sigmoid needs no pass.
        """
        if self.sigmoid and maxima is None:
            return
        if self.background is None:
            largest = self.regions.new_full((len(self.regions), 1), -torch.inf)
            total = torch.zeros_like(largest, dtype=torch.float64)
        else:
            largest = self.background
            total = torch.ones_like(largest, dtype=torch.float64)
        for block, buffer in blocks_of(self.regions, len(self.classes)):
            logits = self.logits(slice(None), block, out=buffer)
            of_runs = run_maxima(logits)
            if maxima is not None:
                maxima[:, block.start // RUN : -(-block.stop // RUN)] = of_runs
            before, largest = largest, torch.maximum(largest, of_runs.amax(dim=1, keepdim=True))
            if not self.sigmoid:
                sums = logits.sub_(largest).exp_().sum(dim=1, keepdim=True)
                total = total * (before - largest).double().exp() + sums
        self.largest, self.total = largest, total


class BlockedScores:
    """The (R, K) scores of an image's regions, where a table of them would be too large.

    With one opinion the score rises with its logit: one pass over the classes finds the maxima of
    runs of logits and what a softmax is divided by, and these the maxima of runs of scores. With
    several opinions each softmax takes a pass of its own, and the scores one more.

    Scores are those of the dense way up to rounding: the logits are the same bit by bit where BLAS
    multiplies a block as it multiplies a whole, and sums of exp are in fp64 here. Memory: R x K /
    64 floats, and a block.

    Attributes:
        num_classes: K.
    """

    def __init__(self, opinions: Sequence[Opinion], combine: Combination | None = None) -> None:
        """
        Args:
            opinions: of the same R regions and K classes.
            combine: probabilities (m, n) of each opinion, regions and classes -> scores (m, n),
                which rise with the probabilities; None: there is one opinion, which is the score.
        """
        self.opinions = list(opinions)
        self.num_classes = len(self.opinions[0].classes)
        self._combine = combine or (lambda probabilities, rows, classes: probabilities[0])

    def __len__(self) -> int:
        """R."""
        return len(self.opinions[0].regions)

    @cached_property
    @torch.no_grad()
    def maxima(self) -> Tensor:
        """(R, ceil(K / RUN)) largest score of each run of classes."""
        opinions = self.opinions
        maxima = opinions[0].regions.new_empty(len(self), -(-self.num_classes // RUN))
        everything = slice(None)
        with torch.autocast(maxima.device.type, enabled=False):
            if len(opinions) == 1:
                opinions[0].look(maxima)
                found = [opinions[0].probabilities(maxima, everything)]
                return self._combine(found, everything, everything)
            for opinion in opinions:
                opinion.look()
            for block, _ in blocks_of(opinions[0].regions, self.num_classes):
                scores = run_maxima(self._scores(everything, block))
                maxima[:, block.start // RUN : -(-block.stop // RUN)] = scores
        return maxima

    def is_finite(self) -> Tensor:
        """(R,) bool: all scores are finite; a maximum over nan is nan."""
        return self.maxima.isfinite().all(dim=1)

    def of_rows(self, rows: Tensor) -> "BlockedScores":
        """Those of some regions, int64 or bool, without another pass."""
        numbers = torch.arange(len(self), device=rows.device)[rows]
        some = BlockedScores(
            [opinion.of_rows(rows) for opinion in self.opinions],
            lambda found, wanted, classes: self._combine(found, numbers[wanted], classes),
        )
        some.num_classes, some.maxima = self.num_classes, self.maxima[rows]
        return some

    @torch.no_grad()
    def first(self, count: int) -> "BlockedScores":
        """Those of the first ``count`` classes; the others keep their share of every softmax."""
        some = BlockedScores(self.opinions, self._combine)
        maxima = self.maxima[:, : -(-count // RUN)]
        if count % RUN:  # the last run has classes of both
            with torch.autocast(maxima.device.type, enabled=False):
                last = self._scores(slice(None), slice(count // RUN * RUN, count))
            maxima = torch.cat([maxima[:, :-1], last.amax(dim=1, keepdim=True)], dim=1)
        some.num_classes, some.maxima = count, maxima
        return some

    @torch.no_grad()
    def columns(self, classes: Tensor) -> Tensor:
        """(R, n) scores of all regions for ``classes`` (n,) int64."""
        _ = self.maxima  # a softmax is over all classes
        with torch.autocast(classes.device.type, enabled=False):
            return self._scores(slice(None), classes)

    @torch.no_grad()
    def of_runs(self, rows: Tensor, runs: Tensor) -> Tensor:
        """(T, RUN) scores of the classes of runs, -inf beyond the last class.

        None is above the maximum that is kept of its run, and one has it: where BLAS rounds a
        product otherwise than in the first pass, the first is believed.

        Args:
            rows: (T,) int64, regions.
            runs: (T,) int64, each the classes from RUN times it on.
        """
        maxima = self.maxima[rows, runs]
        scores = maxima.new_empty(len(rows), RUN)
        distinct, places = runs.unique(return_inverse=True)
        order = places.argsort(stable=True)
        within = torch.arange(RUN, device=rows.device)
        starts = torch.arange(0, len(distinct) + _RUNS_AT_ONCE, _RUNS_AT_ONCE, device=rows.device)
        ends = torch.searchsorted(places[order], starts).tolist()
        with torch.autocast(rows.device.type, enabled=False):
            for chunk, (begin, end) in zip(distinct.split(_RUNS_AT_ONCE), itertools.pairwise(ends)):
                pairs = order[begin:end]
                some, back = rows[pairs].unique(return_inverse=True)
                enough = torch.arange(max(len(some), _LEAST_ROWS), device=rows.device) % len(some)
                classes = (chunk[:, None] * RUN + within).clamp(max=self.num_classes - 1)
                found = self._scores(some[enough], classes.flatten())
                found = found.unflatten(1, (len(chunk), RUN))
                scores[pairs] = found[back, places[pairs] % _RUNS_AT_ONCE]
        scores[runs[:, None] * RUN + within >= self.num_classes] = -torch.inf
        largest = scores.argmax(dim=1, keepdim=True)
        return scores.minimum(maxima[:, None]).scatter_(1, largest, maxima[:, None])

    def _scores(self, rows: Rows, classes: Rows) -> Tensor:
        found = [o.probabilities(o.logits(rows, classes), rows) for o in self.opinions]
        return self._combine(found, rows, classes)


def blocks_of(regions: Tensor, num_classes: int) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of classes and an (R, n) buffer for each, the same memory again and again. All but
    the last begin and end between two runs; none is much smaller than the others."""
    most = _BLOCK_BYTES.get(regions.device.type, _BLOCK_BYTES_ELSEWHERE)
    width = max(most // (4 * max(len(regions), 1)) // RUN, 1) * RUN
    starts = list(range(0, max(num_classes // width, 1) * width, width))
    memory = regions.new_empty(len(regions) * min(num_classes, 2 * width))
    for start, stop in zip(starts, [*starts[1:], num_classes]):
        yield (
            slice(start, stop),
            memory[: len(regions) * (stop - start)].view(len(regions), stop - start),
        )


def run_maxima(scores: Tensor, run: int = RUN) -> Tensor:
    """(R, ceil(K / run)): maxima over runs of classes; the last run may be shorter."""
    whole = scores.shape[1] // run * run
    maxima = scores[:, :whole].unflatten(1, (whole // run, run)).amax(dim=2)
    if whole == scores.shape[1]:
        return maxima
    return torch.cat([maxima, scores[:, whole:].amax(dim=1, keepdim=True)], dim=1)
