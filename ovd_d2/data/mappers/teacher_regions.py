"""Regions of a store become target rows of a training sample.

Letters: Ri target rows of image i, D embedding width.
"""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import Instances

from ovd_d2.data.mappers.target_rows import boxes_in_frame, followed_by
from ovd_d2.errors import OVDError
from ovd_d2.region_store import RegionStore, fingerprint_of
from ovd_d2.structures import Supervision

NO_CLASS = -1


class TeacherRegions:
    """Appends a teacher's regions to the ``instances`` of an image.

    The store is opened by the process that first reads from it: cheap to hand to workers.
    """

    def __init__(
        self, store: str | os.PathLike, max_regions: int = 300, choice: str = "random"
    ) -> None:
        """
        Args:
            store: folder of a finished region store.
            max_regions: at most this many per image and step; 0: all.
            choice: "random", drawn without replacement from those of the image, or "first": as the
                store has them, which is best first.

        Raises:
            OVDError: ``max_regions`` is negative, or an unknown ``choice``.
        """
        if choice not in ("random", "first"):
            raise OVDError(f'DATASETS.REGIONS_CHOICE is {choice!r}; use "random" or "first".')
        if max_regions < 0:
            raise OVDError(
                f"DATASETS.REGIONS_PER_IMAGE is {max_regions}; it must be 0 (all) or more."
            )
        self.path = os.fspath(store)
        self.max_regions = max_regions
        self.choice = choice
        self._store: RegionStore | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "TeacherRegions | None":
        """As ``DATASETS.REGION_STORE``, ``REGIONS_PER_IMAGE`` and ``REGIONS_CHOICE`` say; None
        without a store."""
        data = cfg.DATASETS
        if not data.REGION_STORE:
            return None
        return cls(data.REGION_STORE, data.REGIONS_PER_IMAGE, data.REGIONS_CHOICE)

    @property
    def store(self) -> RegionStore:
        """The store, opened on first use.

        Raises:
            OVDError: see :class:`RegionStore`.
        """
        if self._store is None:
            self._store = RegionStore(self.path)
        return self._store

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_store": None}

    def check_images(
        self,
        image_ids: Iterable[int | str],
        datasets: Sequence[str],
        images_of: Sequence[str] = (),
    ) -> None:
        """Raises OVDError unless the store is one for these images.

        It is if the data set it was built for has exactly these images, or if it was built for one
        of ``datasets`` (which may have lost its empty images since) or ``images_of`` and has them
        all.

        Args:
            image_ids: of all training records.
            datasets: DATASETS.TRAIN.
            images_of: data sets some of whose images, under the same ids, ``datasets`` label anew.
        """
        image_ids, facts = list(image_ids), self.store.facts
        missing = self.store.missing(image_ids)
        if missing:
            raise OVDError(
                f"DATASETS.REGION_STORE {self.path} (of data set {facts.dataset_name}) has no "
                f"regions of {len(missing)} of the {len(image_ids)} images of "
                f"{', '.join(datasets)}, such as image {missing[0]!r}: build it for this data set."
            )
        if facts.dataset_name not in (*datasets, *images_of) and (
            facts.dataset_fingerprint != fingerprint_of(image_ids)
        ):
            raise OVDError(
                f"DATASETS.REGION_STORE {self.path} was built for data set {facts.dataset_name}, "
                f"whose images are not those of {', '.join(datasets)}: build it for this data set."
            )

    def append_to(
        self, targets: Instances, image_id: int | str, transforms: T.Transform
    ) -> Instances:
        """The rows of ``targets``, then one per region that is still in the image.

        Args:
            targets: of an augmented image: ``gt_boxes`` and any of Detectron2's fields; rows
                without ``supervision`` are BOX.
            image_id: of the data set.
            transforms: what the image went through; the regions' boxes follow, are clipped to the
                image, and dropped where nothing of them is left.

        Returns:
            (Ri,) rows with ``supervision`` (int64) and ``teacher_embedding`` (Ri, D) float16,
            zeros for the rows of ``targets``. Regions have ``gt_classes`` -1, no mask, and
            keypoints of 0.

        Raises:
            OVDError: the store lacks the image, or ``targets`` has a field of unknown kind.
        """
        regions = self.store[image_id]
        if 0 < self.max_regions < len(regions):
            random = self.choice == "random"
            order = torch.randperm(len(regions)) if random else torch.arange(len(regions))
            regions = regions[order[: self.max_regions]]
        boxes, left = boxes_in_frame(regions.boxes, transforms, targets.image_size)
        classes = torch.full((len(boxes),), NO_CLASS, dtype=torch.int64)
        rows = followed_by(targets, boxes, classes, Supervision.TEACHER_REGION)
        none = regions.embeddings.new_zeros(len(targets), regions.embeddings.shape[1])
        rows.teacher_embedding = torch.cat([none, regions.embeddings[left]])
        return rows
