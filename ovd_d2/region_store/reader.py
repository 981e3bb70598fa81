"""Reading a region store by memory map.

Letters: Ri regions of image i, D embedding width.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ovd_d2.errors import OVDError
from ovd_d2.structures import RegionEmbeddings

from .manifest import (
    MANIFEST,
    ImageId,
    StoreFacts,
    checked_image_id,
    fingerprint_of,
    part_paths,
    read_manifest,
)
from .shard import map_shard, read_index


class MissingImageError(OVDError, KeyError):
    """The store has no regions for this image id."""

    __str__ = Exception.__str__  # KeyError's would quote the sentence


class RegionStore(Mapping[ImageId, RegionEmbeddings]):
    """A finished store: ``store[image_id]`` gives the regions of an image.

    The tensors are views of the mapped file: nothing is read before they are used. Do not change
    them in place (the file stays as it is, but later reads of this process see the change); clone.
    Iteration is over image ids in file order. Cheap to hand to worker processes: maps are opened
    where they are used.

    Args:
        path: folder of the store.
        expected_encoder_id: refuse a store made by another encoder; None takes any.
        expected_image_ids: refuse a store made for a data set with other images; None takes any.

    Raises:
        OVDError: missing, unfinished, of another encoder or data set, or with a missing, truncated
            or foreign shard, which is named. Changed bytes are found by
            :func:`~ovd_d2.region_store.verify`, which reads everything.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        expected_encoder_id: str | None = None,
        expected_image_ids: Iterable[ImageId] | None = None,
    ) -> None:
        self.path = Path(path)
        check_finished(self.path)
        manifest = read_manifest(self.path / MANIFEST)
        self.facts: StoreFacts = manifest.facts
        self._check_facts(expected_encoder_id, expected_image_ids)
        self._entries = manifest.shards
        self._maps: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}
        self._position: dict[ImageId, int] = {}
        indices = [read_index(self.path, entry, manifest.facts) for entry in manifest.shards]
        for index, entry in zip(indices, manifest.shards):
            before = len(self._position)
            self._position.update(zip(index.image_ids, range(before, before + entry.images)))
            if len(self._position) != before + entry.images:
                raise OVDError(
                    f"shard {self.path / entry.file} holds an image that is in the store already; "
                    "build the store again"
                )
        none = np.zeros(0, dtype=np.int64)
        counts = [entry.images for entry in manifest.shards]
        self._shard_of = np.repeat(np.arange(len(counts)), counts)
        self._start = np.concatenate([none, *(index.row_offsets[:-1] for index in indices)])
        self._stop = np.concatenate([none, *(index.row_offsets[1:] for index in indices)])

    def __getitem__(self, image_id: ImageId) -> RegionEmbeddings:
        """Regions of an image: boxes (Ri, 4) float32 xyxy in pixels of the original image,
        embeddings (Ri, D) float16 of L2 norm 1, scores (Ri,) float32 or None.

        Raises:
            MissingImageError: the store has no such image; a ``KeyError`` too.
            OVDError: its shard was truncated or deleted since the store was opened.
        """
        position = self._position.get(image_id)
        if position is None:
            raise MissingImageError(
                f"region store {self.path} has no image {image_id!r}; "
                "build it for the data set in use"
            )
        number = int(self._shard_of[position])
        if number not in self._maps:
            self._maps[number] = map_shard(self.path, self._entries[number])
        rows = slice(int(self._start[position]), int(self._stop[position]))
        boxes, embeddings, scores = self._maps[number]
        return RegionEmbeddings(
            boxes[rows], embeddings[rows], None if scores is None else scores[rows]
        )

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._position

    def __iter__(self) -> Iterator[ImageId]:
        return iter(self._position)

    def __len__(self) -> int:
        return len(self._position)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}

    @property
    def regions_per_image(self) -> np.ndarray:
        """(images,) int64: Ri of each image, in file order."""
        return self._stop - self._start

    def missing(self, image_ids: Iterable[ImageId]) -> list[ImageId]:
        """Those of ``image_ids`` that the store does not have."""
        return [image_id for image_id in image_ids if image_id not in self._position]

    def _check_facts(self, encoder_id: str | None, image_ids: Iterable[ImageId] | None) -> None:
        if encoder_id is not None and encoder_id != self.facts.encoder_id:
            raise OVDError(
                f'region store {self.path} was made by encoder "{self.facts.encoder_id}", but '
                f'"{encoder_id}" is in use: build the store with that encoder, or use the other one'
            )
        if image_ids is None:
            return
        fingerprint = fingerprint_of(checked_image_id(image_id) for image_id in image_ids)
        if fingerprint != self.facts.dataset_fingerprint:
            raise OVDError(
                f"region store {self.path} was made for data set {self.facts.dataset_name}, "
                "whose images are not those of the data set in use: build it for this one"
            )


def check_finished(folder: Path) -> None:
    """Raises an ``OVDError`` unless ``folder`` holds a finished store."""
    if not folder.is_dir():
        raise OVDError(f"region store {folder} does not exist; build it with `ovd regions`")
    if (folder / MANIFEST).is_file():
        return
    if part_paths(folder):
        raise OVDError(
            f"region store {folder} is unfinished: run the command that builds it again, it goes "
            "on where it stopped"
        )
    raise OVDError(f"{folder} is no region store: it has no {MANIFEST}; give the folder of one")
