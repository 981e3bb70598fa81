"""Batches of dataset indices as a pure function of the sampler, so that training can resume.

A *position* is the place of a sample in the one infinite stream that all processes share:
process ``rank`` of W takes positions rank, rank + W, rank + 2W, ... Without grouping, batch n of
all processes together is what a single process would have as its batch n.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from torch.utils.data import Sampler


def aspect_ratio_groups(records: Sequence[dict]) -> np.ndarray:
    """0 for images wider than high, 1 for the others, as Detectron2 groups them.

    Args:
        records: dataset records; one without ``width`` and ``height`` counts as square.

    Returns:
        (number of records,) uint8.
    """
    return np.fromiter(
        (not r.get("width", 0) > r.get("height", 0) for r in records), np.uint8, len(records)
    )


class ResumableBatchSampler(Sampler):
    """Lists of (position, index), B long, for one process; starts anywhere in the stream."""

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        *,
        groups: np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
        skip: int = 0,
    ) -> None:
        """
        Args:
            sampler: the indices of this process, the same ones each time it is iterated.
            batch_size: B, images per process and batch.
            groups: group number of every index; a batch holds one group only.
            rank: of this process.
            world_size: number of processes.
            skip: leave out this many batches from the start of the stream.
        """
        self._sampler = sampler
        self._batch_size = batch_size
        self._groups = groups
        self._rank = rank
        self._world_size = world_size
        self._skip = skip

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return islice(self._batches(), self._skip, None)

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        pending: dict[int, list[tuple[int, int]]] = {}
        for local, index in enumerate(self._sampler):
            group = 0 if self._groups is None else int(self._groups[index])
            batch = pending.setdefault(group, [])
            batch.append((local * self._world_size + self._rank, index))
            if len(batch) == self._batch_size:
                yield pending.pop(group)
