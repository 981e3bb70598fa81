"""From a data set and an image-text model to a region store, by one process or several.

Letters: Ri regions of image i, D embedding width.
"""

import argparse
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from torch import Tensor, distributed

from ovd_d2.data.build import dataset_errors
from ovd_d2.data.prefetch import MAX_UNREADABLE, read_ahead
from ovd_d2.encoders import CROP_RULES, CropRegionEncoder, build_image_text_model
from ovd_d2.engine.launch import launch
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import check_output_folder
from ovd_d2.proposals.build import build_region_proposer
from ovd_d2.proposals.proposer import BoxProposer
from ovd_d2.region_store import RegionStoreWriter, StoreFacts, merge_manifests
from ovd_d2.structures import RegionEmbeddings

logger = logging.getLogger(__name__)

SHARD_SECONDS = 120.0  # what a kill may cost
CPU_BATCH, GPU_BATCH = 32, 256
_IMAGES_AT_ONCE = 64  # with few boxes each, crops of this many images share batches
LONGEST_WAIT = timedelta(days=30)  # of the first process to be done for the last one

OnImage = Callable[[int, int], None]


@dataclass(frozen=True)
class BuildSettings:
    """What to build.

    Attributes:
        dataset: a registered data set.
        proposals: "gt", "json:FILE", "rpn:CHECKPOINT" or "hf:MODEL".
        encoder: of ``build_image_text_model``.
        out: folder of the store; an interrupted build is gone on with.
        topk: boxes per image at most.
        crops: "1x" or "1x+1.5x".
        batch: crops at once through the image tower; 0: 32 on a CPU, 256 on a GPU.
        device: "cpu", "cuda", ...; "auto": this process's GPU if there is one.
        save_every: seconds of work that a kill may cost.
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
        on_image: told (images done, images in all) of this process's share: once before the first
            image, with those of earlier runs, then after every few images.

    Returns:
        what this process did.

    Raises:
        OVDError: bad settings, a store made from something else, or too many unreadable images.
    """
    if settings.crops not in CROP_RULES:
        raise OVDError(f"--crops {settings.crops}: use {' or '.join(CROP_RULES)}")
    check_output_folder("--out", settings.out)
    namespace = argparse.Namespace(num_gpus=0, num_machines=1)
    return launch(lambda _: build_in_process(settings, on_image), namespace)


def build_in_process(settings: BuildSettings, on_image: OnImage | None = None) -> BuildReport:
    """As :func:`build_region_store`, to be called by each of the processes once they are up."""
    device = process_device(settings.device)
    batch = settings.batch or (CPU_BATCH if device == "cpu" else GPU_BATCH)
    with dataset_errors("--dataset", [settings.dataset]):
        records = DatasetCatalog.get(settings.dataset)
    proposer = build_region_proposer(settings.proposals, records, settings.topk, device)
    model = build_image_text_model(settings.encoder, device)
    encoder = CropRegionEncoder(model, CROP_RULES[settings.crops], batch)
    report = write_regions(
        records,
        settings.dataset,
        proposer,
        encoder,
        settings.out,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        on_image=on_image,
        shard_seconds=settings.save_every,
    )
    if comm.get_world_size() > 1:
        wait_for_all()
        if comm.is_main_process():
            merge_manifests(settings.out)
        wait_for_all()
    return report


def wait_for_all() -> None:
    """Returns when all processes are here, be it after days.

    Shares end hours apart; the default group would give up waiting after some minutes.
    """
    if comm.get_world_size() > 1:
        distributed.barrier(distributed.new_group(backend="gloo", timeout=LONGEST_WAIT))


def process_device(wanted: str) -> str:
    """Where this process computes.

    Args:
        wanted: "cpu", "cuda", ...; "auto": this process's GPU if there is one.

    Raises:
        OVDError: torch cannot use it.
    """
    if wanted != "auto":
        try:
            torch.empty(0, device=wanted)
        except (RuntimeError, AssertionError) as error:  # unknown name; torch without CUDA
            raise OVDError(f"--device {wanted}: {str(error).splitlines()[0]}") from None
        return wanted
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


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
        on_image: see :func:`build_region_store`.
        shard_seconds: of work that a kill may cost.

    Returns:
        what this process did.

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
