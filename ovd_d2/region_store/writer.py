"""Crash-safe writer of region stores, for one process or several.

Letters: Ri regions of image i, D embedding width.
"""

import logging
import os
import time
from collections.abc import Iterable, Iterator, Set
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch
from pathlib import Path
from types import TracebackType

import torch
from filelock import BaseFileLock
from torch import Tensor

from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import PARTIAL_SUFFIX, missing_folders, remove_empty
from ovd_d2.files.locks import lock
from ovd_d2.structures import RegionEmbeddings

from .manifest import (
    MANIFEST,
    ImageId,
    Manifest,
    StoreFacts,
    check_same_facts,
    checked_image_id,
    part_name,
    part_paths,
    read_all_manifests,
    read_manifest,
    shard_name,
    shard_rank_and_number,
    write_manifest,
)
from .shard import read_index, stored, write_shard

logger = logging.getLogger(__name__)

SHARD_BYTES = 64 << 20
SHARD_SECONDS = 600.0
_NORM_TOLERANCE = 1e-2  # fp16 rows of unit norm are off by about 1e-3


class RegionStoreWriter:
    """Appends images to a region store, new or begun before.

    A shard counts from the moment the process's manifest lists it, so a process killed at any
    moment loses at most the images of the shard being filled, and appends none twice after it
    resumes. Use as a context manager, or call :meth:`close`. Leaving the block with an exception
    keeps the images appended so far, and leaves the store to be resumed.

    With several processes, each has its own writer; after all are closed, one of them calls
    :func:`merge_manifests`. A single process does that when it closes. The number of processes may
    change between runs.

    Args:
        path: folder of the store; created.
        facts: what the store is made from; the same on every resume.
        rank: of this process, 0 to ``world_size`` - 1.
        world_size: number of processes that write.
        shard_bytes: a shard is finished when it holds this much,
        shard_seconds: or at the first image appended after this time: what a kill can cost.

    Raises:
        OVDError: ``path`` holds a store made from something else, or a damaged one, or another
            process is writing the same part of it.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        facts: StoreFacts,
        *,
        rank: int = 0,
        world_size: int = 1,
        shard_bytes: int = SHARD_BYTES,
        shard_seconds: float = SHARD_SECONDS,
    ) -> None:
        if not 0 <= rank < world_size:
            raise OVDError(f"rank {rank} must be at least 0 and below world_size {world_size}")
        self.path = Path(path)
        self.facts = facts
        self._rank, self._world_size = rank, world_size
        self._shard_bytes, self._shard_seconds = shard_bytes, shard_seconds
        self._made = missing_folders(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OVDError(f"region store {self.path} cannot be created ({error})") from error
        self._is_new = not any(self.path.iterdir())
        self._lock: BaseFileLock | None = _lock(self.path, rank)
        try:
            self._resume()
        except BaseException:
            self._unlock()
            raise
        self._start_shard()

    @property
    def done_ids(self) -> Set[ImageId]:
        """Ids of all images in the store, those of the shard being filled included."""
        return self._done

    def remaining(self, image_ids: Iterable[ImageId]) -> list[ImageId]:
        """What this process has to append: its share of ``image_ids``, less what is done.

        Every process must be given the same ids in the same order.
        """
        share = list(image_ids)[self._rank :: self._world_size]
        return [image_id for image_id in share if image_id not in self._done]

    def append(self, image_id: ImageId, regions: RegionEmbeddings) -> None:
        """Adds an image; its tensors are copied and may be reused.

        Args:
            image_id: its id in the data set.
            regions: on any device, of any floating type; kept as float32 boxes and scores and
                float16 embeddings.

        Raises:
            OVDError: the image is there already, or the regions are not as
                :class:`RegionEmbeddings` and the store's facts say; nothing is added then.
        """
        if self._lock is None:
            raise OVDError(f"the writer of region store {self.path} is closed")
        image_id = checked_image_id(image_id)
        if image_id in self._done:
            raise OVDError(f"image {image_id!r} is in region store {self.path} already")
        rows = self._checked_rows(image_id, regions)
        for name, tensor in rows.items():
            self._rows[name].append(tensor)
            self._open_bytes += tensor.nbytes
        self._ids.append(image_id)
        self._offsets.append(self._offsets[-1] + len(regions))
        self._done.add(image_id)
        old = time.monotonic() - self._opened_at >= self._shard_seconds
        if old or self._open_bytes >= self._shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Finishes the shard being filled: its images are safe when this returns.

        Raises:
            OVDError: it cannot be written; its images are kept in memory, and may be tried again.
        """
        if not self._ids:
            return
        path = self.path / shard_name(self._rank, self._number)
        tensors = {name: torch.cat(parts) for name, parts in self._rows.items()}
        entry = write_shard(path, self._ids, tensors, self._offsets)
        part = Manifest(self.facts, (*self._part.shards, entry))
        write_manifest(self.path / part_name(self._rank), part)
        self._part = part
        self._number += 1
        self._start_shard()

    def close(self) -> None:
        """Finishes the shard being filled, and the store if this process alone writes it."""
        if self._lock is None:
            return
        try:
            self.flush()
        finally:
            self._unlock()
        if self._world_size == 1:
            merge_manifests(self.path)

    def __enter__(self) -> "RegionStoreWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.flush()
        except OVDError as failure:
            logger.warning("The last images are lost: %s", failure)
        finally:
            self._leave_nothing_empty()
            self._unlock()

    def _leave_nothing_empty(self) -> None:
        """Deletes a store that this writer alone has begun and that holds nothing."""
        if not self._is_new or self._world_size > 1 or self._part.shards:
            return
        for name in (part_name(self._rank), _lock_name(self._rank)):
            (self.path / name).unlink(missing_ok=True)
        remove_empty(self._made)

    def _resume(self) -> None:
        found = read_all_manifests(self.path)
        if found is not None:
            check_same_facts(self.facts, found.facts, self.path, "this run")
        shards = found.shards if found else ()
        _remove_unlisted(self.path, {shard.file for shard in shards}, self._rank)
        self._done = set(ids_of(self.path, Manifest(self.facts, shards)))
        numbers = [shard_rank_and_number(shard.file) for shard in shards]
        self._number = 1 + max((n for rank, n in numbers if rank == self._rank), default=-1)
        part = self.path / part_name(self._rank)
        if part.is_file():
            self._part = read_manifest(part)
        else:
            self._part = Manifest(self.facts)
            write_manifest(part, self._part)

    def _start_shard(self) -> None:
        names = ("boxes", "embeddings", "scores")[: 3 if self.facts.has_scores else 2]
        self._rows: dict[str, list[Tensor]] = {name: [] for name in names}
        self._ids: list[ImageId] = []
        self._offsets = [0]
        self._open_bytes = 0
        self._opened_at = time.monotonic()

    def _checked_rows(self, image_id: ImageId, regions: RegionEmbeddings) -> dict[str, Tensor]:
        boxes = stored(torch.float32, regions.boxes)
        embeddings = stored(torch.float16, regions.embeddings)
        rows = {"boxes": boxes, "embeddings": embeddings}
        problem = ""
        if embeddings.shape[1] != self.facts.dim:
            problem = f"embeddings of width {embeddings.shape[1]} instead of {self.facts.dim}"
        elif not boxes.isfinite().all() or not (boxes[:, 2:] >= boxes[:, :2]).all():
            problem = "a box that is not finite, or whose corners are not in the order xyxy"
        elif not (_norms(embeddings) - 1).abs().le(_NORM_TOLERANCE).all():
            problem = "an embedding that is not of L2 norm 1"
        if self.facts.has_scores:
            empty = torch.zeros(0) if len(regions) == 0 else None
            scores = empty if regions.scores is None else regions.scores
            if scores is None or not scores.isfinite().all():
                problem = problem or "no finite scores"
            else:
                rows["scores"] = stored(torch.float32, scores)
        elif regions.scores is not None and len(regions):
            problem = problem or "scores, but the store keeps none (has_scores is False)"
        if problem:
            raise OVDError(f"image {image_id!r} has {problem}; region store {self.path} refuses it")
        return rows

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def merge_manifests(path: str | os.PathLike) -> Manifest:
    """Makes one manifest of those of all processes; the store is finished then.

    Call it in one process, after the writers of all are closed. Harmless on a finished store.

    Raises:
        OVDError: a writer is still open, nothing is there, a shard is damaged or an image is in
            the store twice.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise OVDError(f"region store {folder} does not exist; build it first")
    with _all_parts(folder) as parts:
        merged = read_all_manifests(folder)
        if merged is None:
            raise OVDError(f"{folder} is no region store: it has no {MANIFEST}; build it first")
        ids_of(folder, merged)
        if parts:
            write_manifest(folder / MANIFEST, merged)
            for part in parts:
                part.unlink()
            _remove_unlisted(folder, {shard.file for shard in merged.shards})
    return merged


def drop_shards(path: str | os.PathLike, files: Iterable[str]) -> None:
    """Takes shards out of a store, so that building again fills the gap.

    Args:
        path: the store's folder.
        files: names of shards.

    Raises:
        OVDError: a writer is open, or a manifest is unreadable.
    """
    folder, files = Path(path), set(files)
    manifests = [folder / MANIFEST] if (folder / MANIFEST).is_file() else []
    with _all_parts(folder) as parts:
        for file in [*manifests, *parts]:
            manifest = read_manifest(file)
            kept = tuple(shard for shard in manifest.shards if shard.file not in files)
            write_manifest(file, Manifest(manifest.facts, kept))
        for name in files:
            (folder / name).unlink(missing_ok=True)


@contextmanager
def _all_parts(folder: Path) -> Iterator[list[Path]]:
    """The manifests of single processes, nobody else writing meanwhile."""
    parts = part_paths(folder)
    with ExitStack() as locks:
        for part in parts:
            rank = int(part.name.split(".")[1].removeprefix("rank"))
            locks.callback(_lock(folder, rank).release)
        yield parts


def ids_of(folder: Path, manifest: Manifest) -> list[ImageId]:
    """Ids of all images, in the order of the shards.

    Raises:
        OVDError: a shard is damaged, or an image is there twice; named.
    """
    owner: dict[ImageId, str] = {}
    for entry in manifest.shards:
        for image_id in read_index(folder, entry, manifest.facts).image_ids:
            if image_id in owner:
                raise OVDError(
                    f"image {image_id!r} is twice in region store {folder}: in shards "
                    f"{owner[image_id]} and {entry.file}; build the store again"
                )
            owner[image_id] = entry.file
    return list(owner)


def _norms(embeddings: Tensor) -> Tensor:
    """(Ri,) fp32 L2 norms of (Ri, D) fp16 rows; nan where a value is."""
    return torch.linalg.vector_norm(embeddings, dim=1, dtype=torch.float32)


def _remove_unlisted(folder: Path, listed: set[str], rank: int | None = None) -> None:
    """Deletes what a killed process ``rank`` (None: any) left: half-written and unlisted files."""
    for file in list(folder.iterdir()):
        name = file.name.removeprefix(".").removesuffix(PARTIAL_SUFFIX)
        owner = shard_rank_and_number(name)
        partial = file.name != name
        if owner is not None:
            mine = rank in (None, owner[0])
        else:
            manifests = f"{Path(MANIFEST).stem}*.json" if rank is None else part_name(rank)
            mine = partial and fnmatch(name, manifests)
        if mine and (partial or name not in listed):
            logger.info("removed %s, which an interrupted run left unfinished", file)
            file.unlink(missing_ok=True)


def _lock_name(rank: int) -> str:
    return f".rank{rank:05d}.lock"


def _lock(folder: Path, rank: int) -> BaseFileLock:
    """Holds the right to write as ``rank`` until released; a killed process loses it."""
    taken = (
        f"another process is writing rank {rank} of region store {folder}; wait for it, or end it"
    )
    try:
        return lock(folder / _lock_name(rank), taken=taken)
    except OSError as error:
        raise OVDError(f"region store {folder} cannot be written ({error})") from error
