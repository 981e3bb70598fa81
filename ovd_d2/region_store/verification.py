"""Verification of region stores by reading every byte."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ovd_d2.errors import OVDError
from ovd_d2.files.digests import file_digest

from .manifest import MANIFEST, ImageId, part_paths, read_all_manifests
from .shard import read_index


@dataclass(frozen=True)
class ShardProblem:
    """A shard that is not as it was written.

    Attributes:
        file: its name.
        what: one sentence that names it.
    """

    file: str
    what: str


def verify(
    path: str | os.PathLike, on_shard: Callable[[int, int], None] | None = None
) -> list[ShardProblem]:
    """Checks size, header, digest and image ids of every shard of a store, finished or not.

    Args:
        path: folder of the store.
        on_shard: told (shards done, shards in all) after each.

    Returns:
        One problem for each damaged shard, in the order of the shards; [] if all is well.

    Raises:
        OVDError: no store, or its manifest is unreadable.
    """
    folder = Path(path)
    manifest = read_all_manifests(folder) if folder.is_dir() else None
    if manifest is None:
        raise OVDError(f"{folder} is no region store: it has no {MANIFEST}; give the folder of one")
    problems = []
    owner: dict[ImageId, str] = {}
    for number, entry in enumerate(manifest.shards):
        what = ""
        try:
            index = read_index(folder, entry, manifest.facts)
            twice = next((i for i in index.image_ids if i in owner), None)
            if file_digest(folder / entry.file, fresh=True) != entry.sha256:
                what = "was changed since it was written: its sha256 is not the manifest's"
            elif twice is not None:
                what = f"holds image {twice!r}, which is in {owner[twice]} too"
            elif len(set(index.image_ids)) != len(index.image_ids):
                what = "holds an image twice"
            owner.update(dict.fromkeys(index.image_ids, entry.file))
            if what:
                what = f"shard {folder / entry.file} {what}"
        except (OVDError, OSError) as error:
            what = str(error)
        if what:
            problems.append(ShardProblem(entry.file, what))
        if on_shard is not None:
            on_shard(number + 1, len(manifest.shards))
    return problems


def is_finished(path: str | os.PathLike) -> bool:
    """Whether nothing is waiting to be merged: no writer is at work and none was interrupted."""
    return (Path(path) / MANIFEST).is_file() and not part_paths(Path(path))
