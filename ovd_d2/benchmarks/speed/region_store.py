"""The region store against one pickle per image, as object-centric-ovd keeps its regions.

Letters: N images, R regions per image, D embedding width.
"""

import os
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ovd_d2.errors import OVDError
from ovd_d2.region_store.manifest import StoreFacts
from ovd_d2.region_store.reader import RegionStore
from ovd_d2.region_store.writer import RegionStoreWriter
from ovd_d2.structures import RegionEmbeddings

PASSES = 3  # of the store, which is quick; the median counts
_DISTINCT_IMAGES = 16  # neither side compresses, so repeating them changes nothing but the memory


@dataclass(frozen=True)
class SideResult:
    """One side: bytes on disk, and seconds for all images."""

    bytes: int
    write: float
    read_in_order: float
    read_at_random: float


@dataclass(frozen=True)
class StoreBenchmark:
    """Both sides, measured one after the other on one machine."""

    images: int
    regions: int
    dim: int
    pickles: SideResult
    store: SideResult

    def times_faster(self, what: str) -> float:
        """Seconds of the pickles / seconds of the store; ``what`` as in :class:`SideResult`."""
        return getattr(self.pickles, what) / getattr(self.store, what)


def bench_store(
    images: int = 1000, regions: int = 300, dim: int = 512, folder: str | os.PathLike | None = None
) -> StoreBenchmark:
    """Writes and reads N x R x D regions both ways.

    Both sides start from tensors in memory and end with tensors that own theirs, so every byte is
    read. Pickles: a list of (4 floats, (1, D) fp32 tensor) per image, as published; not flushed to
    disk. Store: fp16, flushed to disk, with its digests. Files are in the page cache when read.

    Args:
        images: N.
        regions: R.
        dim: D.
        folder: where to work, about 1 GB; default the system's for temporary files.

    Raises:
        OVDError: a number below 1, or a folder that cannot be written.
    """
    if min(images, regions, dim) < 1:
        raise OVDError("--images, --regions and --dim must be at least 1")
    generator = torch.Generator().manual_seed(0)
    samples = [
        _random_regions(regions, dim, generator) for _ in range(min(images, _DISTINCT_IMAGES))
    ]
    shuffled = torch.randperm(images, generator=generator).tolist()
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix="ovd-bench-store-") as work:
            pickles = _bench_pickles(Path(work), images, samples, shuffled)
            passes = [
                _bench_store(Path(work) / f"store{turn}", images, dim, samples, shuffled)
                for turn in range(PASSES)
            ]
    except OSError as error:
        raise OVDError(f"the benchmark cannot write its files ({error}); use --folder") from error
    names = ("bytes", "write", "read_in_order", "read_at_random")
    store = SideResult(*(statistics.median(getattr(p, name) for p in passes) for name in names))
    return StoreBenchmark(images, regions, dim, pickles, store)


def _random_regions(regions: int, dim: int, generator: torch.Generator) -> RegionEmbeddings:
    corners = torch.rand(regions, 2, 2, generator=generator).sort(dim=1).values * 640
    embeddings = torch.randn(regions, dim, generator=generator)
    return RegionEmbeddings(corners.flatten(1), nn.functional.normalize(embeddings, dim=1))


def _bench_pickles(
    folder: Path, images: int, samples: list[RegionEmbeddings], shuffled: list[int]
) -> SideResult:
    folder = folder / "pickles"
    folder.mkdir()
    as_published = [
        [(box.tolist(), row.clone()) for box, row in zip(sample.boxes, sample.embeddings.split(1))]
        for sample in samples
    ]

    def write() -> None:
        for image_id in range(images):
            with open(folder / f"{image_id:012d}.pkl", "wb") as file:
                pickle.dump(as_published[image_id % len(samples)], file)

    def read(order: list[int]) -> None:
        for image_id in order:
            with open(folder / f"{image_id:012d}.pkl", "rb") as file:
                content = pickle.load(file)  # noqa: S301  (written by this process, just before)
            torch.tensor(np.array([box for box, _ in content]))
            torch.cat([embedding for _, embedding in content])

    return _measured(folder, write, read, shuffled)


def _bench_store(
    folder: Path, images: int, dim: int, samples: list[RegionEmbeddings], shuffled: list[int]
) -> SideResult:
    facts = StoreFacts.for_dataset(
        "bench", range(images), encoder_id="random", dim=dim, crop_rule="none", proposals="random"
    )

    def write() -> None:
        with RegionStoreWriter(folder, facts) as writer:
            for image_id in range(images):
                writer.append(image_id, samples[image_id % len(samples)])

    def read(order: list[int]) -> None:
        store = RegionStore(folder, expected_encoder_id="random")
        for image_id in order:
            regions = store[image_id]
            regions.boxes.clone()
            regions.embeddings.clone()

    return _measured(folder, write, read, shuffled)


def _measured(
    folder: Path, write: Callable[[], None], read: Callable[[list[int]], None], shuffled: list[int]
) -> SideResult:
    written = _seconds(write)
    size = sum(file.stat().st_size for file in folder.iterdir())
    in_order = _seconds(lambda: read(sorted(shuffled)))
    at_random = _seconds(lambda: read(shuffled))
    return SideResult(size, written, in_order, at_random)


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
