"""Loaders picked by the config: one for training that resumes exactly, one for testing."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from ovd_d2.data.datasets.tar_shards import damaged_shards
from ovd_d2.data.mappers.caption_concepts import LeftOutError
from ovd_d2.data.mappers.choice import check_numbers_of_label_maps, mapper_for
from ovd_d2.errors import OVDError
from ovd_d2.files.images import UnreadableImageError

from . import random_state
from .held_out import warn_of_names_without_boxes, with_absent_classes, without_novel_boxes
from .mixing import MixedLoader, read_sources, with_seed
from .named_datasets import (
    check_own_records,
    check_registered,  # noqa: F401
    dataset_errors,
)
from .samplers import ResumableBatchSampler, aspect_ratio_groups

logger = logging.getLogger(__name__)

# After this many unreadable images in a row the dataset, not the image, is at fault.
MAX_ATTEMPTS = 10
MAX_LEFT_OUT = 1000  # the same for images that the config leaves out
# Fields under which a sample reports the images it stands in for, [(file name, reason)]: those that
# cannot be read, and those that the config leaves out.
UNREADABLE, LEFT_OUT = "unreadable_images", "images_left_out"
REFUSAL = "refusal"  # the one field of a sample that stops the training: the sentence why
_NAMED_ONE_BY_ONE = 5  # images that are left out; then one log line for each power of ten


class EndWithParent:
    """``worker_init_fn``: a worker whose parent was killed while it started ends at once.

    torch's workers notice a killed parent by a change of their parent's id, which they first note
    after this has run; a parent that is gone by then would leave them waiting for ever.
    """

    def __init__(self) -> None:
        self._parent = os.getpid()

    def __call__(self, worker_id: int) -> None:
        if os.getppid() != self._parent:
            os._exit(1)


class MappedSamples(Dataset):
    """Maps (position, index) to a training sample whose augmentation depends on nothing else.

    An image that is unreadable or left out is replaced by one drawn at random, and reported in the
    sample's field ``unreadable_images`` or ``images_left_out``; a sample with no field but these
    means that no replacement could be used either. An ``OVDError`` of the mapper becomes the field
    ``refusal``: raised here, in a worker, it would be a traceback.
    """

    def __init__(self, records: Dataset, mapper: Callable, seed: int) -> None:
        """
        Args:
            records: map-style dataset of dataset records.
            mapper: record -> sample; None to leave the record out.
            seed: of the augmentations, non-negative.
        """
        self._records = records
        self._mapper = mapper
        self.seed = seed

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        position, index = item
        reports: dict[str, list[tuple[str, str]]] = {}
        failures = 0
        for attempt in range(MAX_LEFT_OUT):
            key = (self.seed, position, attempt)
            try:
                with random_state.seeded(*key):
                    sample = self._mapper(self._records[index])
            except (UnreadableImageError, LeftOutError) as error:
                field = LEFT_OUT if isinstance(error, LeftOutError) else UNREADABLE
                reports.setdefault(field, []).append((error.file_name, error.reason))
                failures += field == UNREADABLE
            except OVDError as error:
                return {REFUSAL: str(error)}
            else:
                if sample is not None:
                    return {**sample, **reports}
                failures += 1
            if failures == MAX_ATTEMPTS:
                break
            index = int(np.random.default_rng(key).integers(len(self._records)))
        return reports


class ResumableLoader:
    """Infinite batches (lists of samples) whose place is saved and restored exactly.

    The place is the number of batches handed out; what workers have prefetched does not count.
    """

    def __init__(
        self,
        records: Dataset,
        mapper: Callable,
        *,
        make_sampler: Callable[[int], Sampler],
        total_batch_size: int,
        seed: int,
        groups: np.ndarray | None = None,
        num_workers: int = 0,
        max_unreadable_fraction: float = 0.0,
    ) -> None:
        """
        Args:
            records: map-style dataset of records.
            mapper: record -> sample.
            make_sampler: seed -> sampler with the indices of this process.
            total_batch_size: images per batch over all processes.
            seed: of sampler and augmentations, non-negative, the same in all processes.
            groups: see :class:`ResumableBatchSampler`.
            num_workers: loading processes; they change the speed and nothing else.
            max_unreadable_fraction: training stops when a larger share of the dataset's images
                has turned out unreadable.

        Raises:
            OVDError: ``total_batch_size`` cannot be split evenly over the processes.
        """
        self._world_size = comm.get_world_size()
        if total_batch_size < 1 or total_batch_size % self._world_size:
            raise OVDError(
                f"SOLVER.IMS_PER_BATCH is {total_batch_size}; it must be a positive multiple of "
                f"the number of processes, {self._world_size}."
            )
        self._samples = MappedSamples(records, mapper, seed)
        self._make_sampler = make_sampler
        self._sampler = make_sampler(seed)
        self._total_batch_size = total_batch_size
        self._groups = groups
        self._num_workers = num_workers
        self._max_unreadable = int(max_unreadable_fraction * len(records))
        self._batches = 0
        self._unreadable: set[str] = set()
        self._left_out: set[str] = set()

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        batch_sampler = ResumableBatchSampler(
            self._sampler,
            self._total_batch_size // self._world_size,
            groups=self._groups,
            rank=comm.get_rank(),
            world_size=self._world_size,
            skip=self._batches,
        )
        loader = DataLoader(
            self._samples,
            batch_sampler=batch_sampler,
            num_workers=self._num_workers,
            collate_fn=trivial_batch_collator,
            worker_init_fn=EndWithParent(),
            generator=torch.Generator(),  # its own: making an iterator must not move torch's
        )
        for batch in loader:
            self._note_unreadable(batch)
            self._batches += 1
            yield batch

    def _note_unreadable(self, batch: list[dict[str, Any]]) -> None:
        for sample in batch:
            if REFUSAL in sample:
                raise OVDError(sample[REFUSAL])
            left_out, unreadable = sample.pop(LEFT_OUT, []), sample.pop(UNREADABLE, [])
            for file_name, reason in left_out:
                self._note_left_out(file_name, reason)
            for file_name, reason in unreadable:
                if file_name not in self._unreadable:
                    self._unreadable.add(file_name)
                    logger.warning(
                        "Skipped the image %s: %s. Unreadable so far: %d of %d images.",
                        file_name, reason, len(self._unreadable), len(self._samples),
                    )  # fmt: skip
            if not sample:
                raise _nothing_to_use(unreadable, left_out)
        if len(self._unreadable) > self._max_unreadable:
            raise OVDError(
                f"{len(self._unreadable)} of {len(self._samples)} training images cannot be read, "
                "more than DATALOADER.MAX_CORRUPT_FRACTION allows: "
                f"{', '.join(sorted(self._unreadable)[:5])}. Repair them or raise the limit."
            )

    def _note_left_out(self, file_name: str, reason: str) -> None:
        if file_name in self._left_out:
            return
        self._left_out.add(file_name)
        count = len(self._left_out)
        if count <= _NAMED_ONE_BY_ONE or str(count).rstrip("0") == "1":
            logger.warning(
                "Left out %s: %s. Left out so far, in this run: %d of %d images.",
                file_name, reason, count, len(self._samples),
            )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """The place in the stream and what it depends on."""
        return {
            "seed": self._samples.seed,
            "batches": self._batches,
            "total_batch_size": self._total_batch_size,
            "world_size": self._world_size,
            "records": len(self._samples),
            "unreadable": sorted(self._unreadable),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues after the last batch of ``state``; takes effect at the next ``iter()``.

        With another batch size, number of processes or dataset the place is kept as the number
        of images seen, and a log line says that the continuation is not exact.
        """
        if "sources" in state:
            logger.warning(
                "The checkpoint was made with DATASETS.SOURCES, now there are none: the data start "
                "at their beginning."
            )
            return
        if state["seed"] != self._samples.seed:
            self._samples.seed = state["seed"]
            self._sampler = self._make_sampler(state["seed"])
        self._batches = state["batches"] * state["total_batch_size"] // self._total_batch_size
        self._unreadable = set(state["unreadable"])
        for key in ("total_batch_size", "world_size", "records"):
            if state[key] != self.state_dict()[key]:
                logger.warning(
                    "The checkpoint was made with %s = %s, now it is %s: training goes on from the "
                    "same number of images, but not exactly as it would have.",
                    key, state[key], self.state_dict()[key],
                )  # fmt: skip


def _nothing_to_use(unreadable: list[tuple[str, str]], left_out: list[tuple[str, str]]) -> OVDError:
    if left_out and not unreadable:
        return OVDError(
            f"{len(left_out)} images in a row were left out, the first being {left_out[0][0]} "
            f"({left_out[0][1]}): give other data, or change the key that leaves them out."
        )
    name, reason = unreadable[0] if unreadable else ("", "the mapper refuses every record")
    return OVDError(
        f"{MAX_ATTEMPTS} images in a row could not be used, the first being {name} ({reason}): "
        "check that the image folder of DATASETS.TRAIN is complete."
    )


def build_train_loader(
    cfg: CfgNode, mapper: Callable | None = None
) -> "ResumableLoader | MixedLoader":
    """The training loader of ``DATASETS.TRAIN``, or of ``DATASETS.SOURCES`` where there are any.

    All of Detectron2's keys for training data are honoured.

    Args:
        cfg: the config.
        mapper: instead of the one ``INPUT.MAPPER`` names.

    Raises:
        OVDError: empty, unregistered or incomplete dataset, unknown sampler, or wrong sources.
    """
    sources = read_sources(cfg)
    if not sources:
        return _build_one(cfg, mapper)
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    check_numbers_of_label_maps(cfg, [(source.name, source.cfg) for source in sources])
    loaders = {}
    for place, source in enumerate(sources):
        with source.named_in_errors():
            loaders[source.name] = _build_one(with_seed(source.cfg, seed, place), mapper)
    ratios = {source.name: source.ratio for source in sources}
    return MixedLoader(loaders, mode=cfg.DATASETS.MIXING, ratios=ratios)


def _build_one(cfg: CfgNode, mapper: Callable | None) -> ResumableLoader:
    """The loader of ``DATASETS.TRAIN``."""
    if not cfg.DATASETS.TRAIN:
        raise OVDError("DATASETS.TRAIN is empty: name at least one training dataset.")
    records = _training_records(cfg)
    # After loading, which may name the classes.
    mapper = mapper or mapper_for(cfg, cfg.DATASETS.TRAIN[0], is_train=True)
    if isinstance(records, IterableDataset):
        logger.warning("DATASETS.TRAIN is an iterable dataset: its place cannot be resumed.")
        return build_detection_train_loader(cfg, mapper=mapper, dataset=records)
    is_list = isinstance(records, list)
    teacher_regions = getattr(mapper, "teacher_regions", None)
    if is_list and teacher_regions is not None:
        names = cfg.DATASETS.TRAIN
        images_of = [MetadataCatalog.get(name).get("images_of", "") for name in names]
        teacher_regions.check_images(_image_ids(records, names), names, images_of)
    grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING and is_list
    return ResumableLoader(
        DatasetFromList(records, copy=False) if is_list else records,
        mapper,
        make_sampler=_sampler_factory(cfg, records, mapper),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
        groups=aspect_ratio_groups(records) if grouped else None,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        max_unreadable_fraction=cfg.DATALOADER.MAX_CORRUPT_FRACTION,
    )


def _training_records(cfg: CfgNode) -> Any:
    names = cfg.DATASETS.TRAIN
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
    shards = damaged_shards(cfg.INPUT.PAIRS.DAMAGED_SHARDS)
    with dataset_errors("DATASETS.TRAIN", names), shards:
        try:
            records = get_detection_dataset_dicts(
                names,
                filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
                min_keypoints=keypoints if cfg.MODEL.KEYPOINT_ON else 0,
                proposal_files=(
                    cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None
                ),
            )
        except (AssertionError, TypeError, ValueError):
            for name in names:  # a better sentence, if the records are to blame
                check_own_records([name], DatasetCatalog.get(name))
            raise
    if not isinstance(records, list):
        return records
    check_own_records(names, records)
    warn_of_names_without_boxes(cfg, records, names[0])  # Detectron2 has compared their classes
    return with_absent_classes(without_novel_boxes(cfg, records, names[0]), names[0])


def _image_ids(records: Sequence[dict], datasets: Sequence[str]) -> list[int | str]:
    try:
        return [record["image_id"] for record in records]
    except KeyError:
        raise OVDError(
            f"An image of DATASETS.TRAIN {', '.join(datasets)} has no image_id, by which "
            "DATASETS.REGION_STORE knows its regions: add one to its record."
        ) from None


def _sampler_factory(
    cfg: CfgNode, records: Sequence[dict], mapper: Callable
) -> Callable[[int], Sampler]:
    def make(seed: int) -> Sampler:
        seeded_cfg = cfg.clone()
        seeded_cfg.defrost()
        seeded_cfg.SEED = seed
        # Some of Detectron2's samplers take no seed and draw one from numpy.
        with random_state.seeded(seed):
            try:
                chosen = build_detection_train_loader.from_config(
                    seeded_cfg, mapper=mapper, dataset=records
                )
            except ValueError as error:
                raise OVDError(f"DATALOADER.SAMPLER_TRAIN: {error}.") from error
        return chosen["sampler"]

    return make


def build_test_loader(
    cfg: CfgNode, dataset_name: str, mapper: Callable | None = None
) -> DataLoader:
    """Detectron2's test loader of ``dataset_name``, one image per batch.

    They are read by the mapper of :func:`~ovd_d2.data.mappers.choice.mapper_for`.

    Raises:
        OVDError: empty, unregistered or incomplete dataset; unreadable images raise when their
            turn comes, because a result without them would be wrong.
    """
    if mapper is None:
        mapper = mapper_for(cfg, dataset_name, is_train=False)
    with dataset_errors("DATASETS.TEST", [dataset_name]):
        loader = build_detection_test_loader(cfg, dataset_name, mapper=mapper)
    loader.worker_init_fn = EndWithParent()
    return loader
