"""Builds a region store: the embeddings of a data set's regions by an image-text model.

Letters: Ri regions of image i, D embedding width.
"""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from torch import Tensor

from ovd_d2.data.build import dataset_errors
from ovd_d2.data.prefetch import MAX_UNREADABLE, read_ahead
from ovd_d2.encoders import CROP_RULES, CropRegionEncoder, build_image_text_model
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import check_output_folder
from ovd_d2.jobs.processes import OnImage, in_processes, process_device, wait_for_all
from ovd_d2.proposals.build import build_region_proposer
from ovd_d2.proposals.proposer import BoxProposer
from ovd_d2.region_store import RegionStoreWriter, StoreFacts, merge_manifests
from ovd_d2.structures import RegionEmbeddings

SHARD_SECONDS = 120.0  # what a kill may cost
CPU_BATCH, GPU_BATCH = 32, 256
_IMAGES_AT_ONCE = 64  # with few boxes each, crops of this many images share batches


@dataclass(frozen=True)
class BuildSettings:
    """What to build.

    Attributes:
        dataset: a registered data set.
        proposals: "gt", "json:FILE", "rpn:CHECKPOINT", "model:CHECKPOINT" or "hf:MODEL".
        encoder: of ``build_image_text_model``.
        out: folder of the store; an interrupted build is gone on with.
        topk: boxes per image at most.
        crops: "1x" or "1x+1.5x".
        batch: crops at once through the image tower; 0: 32 on a CPU, 256 on a GPU.
        device: "cpu", "cuda", ...; "auto": this process's GPU if there is one.
        save_every: seconds of work that a kill may cost.
        queries: what "model:", a MAVL, is asked for objects; empty: RKD's four.
    """

    dataset: str
    proposals: str
    encoder: str
    out: Path
    topk: int = 300
    crops: str = "1x+1.5x"
    batch: int = 0
    device: str = "auto"
    save_every: float = SHARD_SECONDS
    queries: tuple[str, ...] = ()


@dataclass(frozen=True)
class BuildReport:
    """What one process did in this run.

    Attributes:
        images: images appended.
        regions: their regions.
        seconds: from the first image to the last; loading the models is not counted.
        unreadable: files that could not be read; their images are not in the store.
    """

    images: int
    regions: int
    seconds: float
    unreadable: tuple[str, ...] = ()


def build_region_store(settings: BuildSettings, on_image: OnImage | None = None) -> BuildReport:
    """Builds a region store or goes on with one; under ``torchrun`` the processes share the images.

    Args:
        settings: see :class:`BuildSettings`.
        on_image: is told what is done.

    Returns:
        what this process did.

    Raises:
        OVDError: bad settings, a store made from something else, or too many unreadable images.
    """
    check_crops(settings.crops)
    check_output_folder("--out", settings.out)
    return in_processes(lambda: _build(settings, on_image))


def _build(settings: BuildSettings, on_image: OnImage | None) -> BuildReport:
    device = process_device(settings.device)
    with dataset_errors("--dataset", [settings.dataset]):
        records = DatasetCatalog.get(settings.dataset)
    return write_and_merge(
        records,
        settings.dataset,
        build_region_proposer(settings.proposals, records, settings.topk, device, settings.queries),
        crop_encoder(settings.encoder, settings.crops, device, settings.batch),
        settings.out,
        on_image=on_image,
        shard_seconds=settings.save_every,
    )


def check_crops(crops: str) -> None:
    """Raises OVDError unless ``crops`` is one of :data:`CROP_RULES`."""
    if crops not in CROP_RULES:
        raise OVDError(f"--crops {crops}: use {' or '.join(CROP_RULES)}")


def crop_encoder(spec: str, crops: str, device: str, batch: int = 0) -> CropRegionEncoder:
    """The encoder of a region store.

    Args:
        spec: of ``build_image_text_model``.
        crops: one of :data:`CROP_RULES`.
        device: where to compute.
        batch: crops at once through the image tower; 0: 32 on a CPU, 256 on a GPU.
    """
    batch = batch or (CPU_BATCH if device == "cpu" else GPU_BATCH)
    return CropRegionEncoder(build_image_text_model(spec, device), CROP_RULES[crops], batch)


def write_and_merge(
    records: Sequence[dict[str, Any]],
    dataset_name: str,
    proposer: BoxProposer,
    encoder: CropRegionEncoder,
    out: str | os.PathLike,
    **options: Any,
) -> BuildReport:
    """:func:`write_regions` in all connected processes, their parts merged when all are done."""
    rank, world_size = comm.get_rank(), comm.get_world_size()
    ranks = {"rank": rank, "world_size": world_size}
    report = write_regions(records, dataset_name, proposer, encoder, out, **ranks, **options)
    if world_size > 1:
        wait_for_all()
        if comm.is_main_process():
            merge_manifests(out)
        wait_for_all()
    return report


def write_regions(
    records: Sequence[dict[str, Any]],
    dataset_name: str,
    proposer: BoxProposer,
    encoder: CropRegionEncoder,
    out: str | os.PathLike,
    *,
    rank: int = 0,
    world_size: int = 1,
    on_image: OnImage | None = None,
    shard_seconds: float = SHARD_SECONDS,
) -> BuildReport:
    """Appends this process's share of a data set's images, less what is done, to a store.

    Args:
        records: of the whole data set, in Detectron2's dataset format, the same in every process.
        dataset_name: for the store's facts.
        proposer: of the boxes.
        encoder: of the embeddings.
        out: folder of the store. With several processes it has to be merged when all are done.
        rank: of this process.
        world_size: number of processes.
        on_image: is told what is done.
        shard_seconds: of work that a kill may cost.

    Raises:
        OVDError: a store made from something else, or more than 1 % of the images are unreadable.
    """
    by_id = {record["image_id"]: record for record in records}
    image_ids = [record["image_id"] for record in records]
    facts = StoreFacts.for_dataset(
        dataset_name,
        image_ids,
        encoder_id=encoder.encoder_id,
        dim=encoder.dim,
        crop_rule=encoder.crop_rule,
        proposals=proposer.name,
        has_scores=proposer.has_scores,
    )
    share = len(image_ids[rank::world_size])
    unreadable: list[str] = []
    images = regions = 0
    with RegionStoreWriter(
        out, facts, rank=rank, world_size=world_size, shard_seconds=shard_seconds
    ) as writer:
        todo = writer.remaining(image_ids)
        start = time.perf_counter()
        tell = on_image or (lambda done, of: None)
        tell(share - len(todo), share)
        allowed = MAX_UNREADABLE * share
        pictures = read_ahead([by_id[image_id] for image_id in todo], unreadable, share, allowed)
        for group in _groups(pictures, proposer, encoder):
            rows = encoder.encode([g.image for g in group], [g.boxes for g in group])
            for one, embeddings in zip(group, rows):
                writer.append(one.image_id, RegionEmbeddings(one.boxes, embeddings, one.scores))
                regions += len(one.boxes)
            images += len(group)
            tell(share - len(todo) + images + len(unreadable), share)
    return BuildReport(images, regions, time.perf_counter() - start, tuple(unreadable))


@dataclass(frozen=True, eq=False)
class _Proposed:
    """An image, (3, H, W) uint8 RGB, with its boxes (Ri, 4) and scores (Ri,) or None."""

    image_id: int | str
    image: Tensor
    boxes: Tensor
    scores: Tensor | None


def _groups(
    pictures: Iterator[tuple[dict[str, Any], Tensor]],
    proposer: BoxProposer,
    encoder: CropRegionEncoder,
) -> Iterator[list[_Proposed]]:
    """Images in their order, as many at a time as fill a batch of crops."""
    group: list[_Proposed] = []
    crops = 0
    for record, image in pictures:
        ((boxes, scores),) = proposer(record, image)
        scores = scores if proposer.has_scores else None
        group.append(_Proposed(record["image_id"], image, boxes, scores))
        crops += len(boxes) * len(encoder.scales)
        if crops >= encoder.batch or len(group) == _IMAGES_AT_ONCE:
            yield group
            group, crops = [], 0
    if group:
        yield group
