"""The json manifests of a region store: what the store holds and which shards belong to it.

A finished store has one, ``manifest.json``. While it is written, each writing process keeps its
own, ``manifest.rank00000.json``, of the shards it has finished; merging them makes
``manifest.json``. A shard is part of the store when a manifest lists it, never before.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import atomic_write

FORMAT = "ovd_d2 region store"
FORMAT_VERSION = 1
DTYPE = "float16"
BOX_FRAME = "xyxy, absolute pixels of the original image"
MANIFEST = "manifest.json"
_SHARD_NAME = re.compile(r"rank(\d{5})-(\d{6})\.safetensors")
_PART_NAME = re.compile(r"manifest\.rank(\d{5})\.json")

ImageId = int | str


@dataclass(frozen=True)
class StoreFacts:
    """What a store was made from; equal for all its shards and on every resume.

    Attributes:
        encoder_id: id of the encoder of the embeddings, which names its weights.
        dim: D, width of an embedding.
        crop_rule: what of the image the encoder saw of a box, e.g. "1x" or "1x+1.5x".
        dataset_name: the data set whose image ids are the keys.
        dataset_images: number of images of the data set.
        dataset_fingerprint: ``fingerprint_of`` the data set's image ids.
        proposals: where the boxes come from, e.g. "gt", "rpn:CHECKPOINT".
        has_scores: whether regions carry scores.
    """

    encoder_id: str
    dim: int
    crop_rule: str
    dataset_name: str
    dataset_images: int
    dataset_fingerprint: str
    proposals: str
    has_scores: bool = False

    @classmethod
    def for_dataset(cls, name: str, image_ids: Iterable[ImageId], **facts: Any) -> "StoreFacts":
        """The facts of a store for data set ``name`` with ``image_ids``.

        Args:
            name: of the data set.
            image_ids: of all images of the data set, in any order.
            facts: the remaining attributes.

        Raises:
            OVDError: an id comes twice, or is neither int nor str.
        """
        image_ids = [checked_image_id(image_id) for image_id in image_ids]
        return cls(
            dataset_name=name,
            dataset_images=len(image_ids),
            dataset_fingerprint=fingerprint_of(image_ids),
            **facts,
        )


@dataclass(frozen=True)
class ShardEntry:
    """A finished shard: its file name in the store's folder, size, digest and counts."""

    file: str
    bytes: int
    sha256: str
    images: int
    regions: int


@dataclass(frozen=True)
class Manifest:
    """Content of one manifest file."""

    facts: StoreFacts
    shards: tuple[ShardEntry, ...] = ()

    @property
    def images(self) -> int:
        """Number of images in the shards."""
        return sum(shard.images for shard in self.shards)

    @property
    def regions(self) -> int:
        """Number of regions in the shards."""
        return sum(shard.regions for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Size of the shards."""
        return sum(shard.bytes for shard in self.shards)


def checked_image_id(image_id: Any) -> ImageId:
    """``image_id`` as int or str; numpy integers become int.

    Raises:
        OVDError: it is anything else.
    """
    if hasattr(image_id, "item") and not isinstance(image_id, str):
        image_id = image_id.item()
    if isinstance(image_id, bool) or not isinstance(image_id, int | str):
        raise OVDError(f"image id {image_id!r} must be an int or a str, as in the data set")
    return image_id


def fingerprint_of(image_ids: Iterable[ImageId]) -> str:
    """Sha256 (64 hex digits) of a set of image ids: their order does not matter, 1 is not "1".

    Raises:
        OVDError: an id comes twice.
    """
    lines = sorted(json.dumps(image_id) for image_id in image_ids)
    for line, following in zip(lines, lines[1:]):
        if line == following:
            raise OVDError(f"image id {line} comes twice in the data set; ids must be unique")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def shard_name(rank: int, number: int) -> str:
    """File name of shard ``number`` of process ``rank``."""
    return f"rank{rank:05d}-{number:06d}.safetensors"


def part_name(rank: int) -> str:
    """File name of the manifest of process ``rank``, while the store is written."""
    return f"manifest.rank{rank:05d}.json"


def shard_rank_and_number(file: str) -> tuple[int, int] | None:
    """(rank, number) of a shard's file name; None for other names."""
    match = _SHARD_NAME.fullmatch(file)
    return (int(match[1]), int(match[2])) if match else None


def part_paths(folder: Path) -> list[Path]:
    """The manifests of single processes in ``folder``: what is not merged yet."""
    return sorted(path for path in folder.iterdir() if _PART_NAME.fullmatch(path.name))


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Writes ``path``; whatever happens meanwhile, it holds the old content or the new.

    Raises:
        OVDError: it cannot be written, for example because the disk is full.
    """
    content = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "dtype": DTYPE,
        "box_frame": BOX_FRAME,
        **asdict(manifest.facts),
        "images": manifest.images,
        "regions": manifest.regions,
        "shards": [asdict(shard) for shard in manifest.shards],
    }
    try:
        with atomic_write(path) as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        raise OVDError(f"manifest {path} cannot be written ({error}); make room for it") from error


def read_manifest(path: Path) -> Manifest:
    """Reads and checks a manifest file.

    Raises:
        OVDError: missing, no manifest of a region store, of another version, or inconsistent.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OVDError(
            f"manifest {path} cannot be read ({error}); build the store again"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise OVDError(f"{path} is no manifest of a region store; give the folder of one")
    for key, wanted in (("version", FORMAT_VERSION), ("dtype", DTYPE), ("box_frame", BOX_FRAME)):
        if content.get(key) != wanted:
            raise OVDError(
                f"manifest {path} has {key} {content.get(key)!r}, this program reads {wanted!r}; "
                "build the store again"
            )
    shards = content.get("shards")
    if not isinstance(shards, list) or not all(isinstance(shard, dict) for shard in shards):
        raise OVDError(f"manifest {path} does not list its shards; build the store again")
    manifest = Manifest(
        _from_json(StoreFacts, content, path),
        tuple(_from_json(ShardEntry, shard, path) for shard in shards),
    )
    names = [shard.file for shard in manifest.shards]
    if len(set(names)) != len(names) or not all(map(shard_rank_and_number, names)):
        raise OVDError(f"manifest {path} lists a shard twice or by a wrong name; build it again")
    if (content.get("images"), content.get("regions")) != (manifest.images, manifest.regions):
        raise OVDError(f"the counts in manifest {path} do not add up; build the store again")
    return manifest


def read_all_manifests(folder: Path) -> Manifest | None:
    """Everything finished in ``folder``, merged or not; None where no manifest is.

    Raises:
        OVDError: a manifest is unreadable, or they were made from different things.
    """
    paths = [path for path in [folder / MANIFEST] if path.is_file()] + part_paths(folder)
    if not paths:
        return None
    manifests = [read_manifest(path) for path in paths]
    for path, manifest in zip(paths, manifests):
        check_same_facts(manifest.facts, manifests[0].facts, paths[0], str(path))
    shards = {shard.file: shard for manifest in manifests for shard in manifest.shards}
    return Manifest(manifests[0].facts, tuple(shards[file] for file in sorted(shards)))


def check_same_facts(wanted: StoreFacts, found: StoreFacts, path: Path, who: str) -> None:
    """Raises an ``OVDError`` that names the first fact in which two stores differ.

    Args:
        wanted: what ``who`` is about to add.
        found: what ``path`` says.
        path: manifest or store.
        who: for the message.
    """
    for field in fields(StoreFacts):
        ours, theirs = getattr(wanted, field.name), getattr(found, field.name)
        if ours != theirs:
            raise OVDError(
                f"region store {path} has {field.name} {theirs!r}, but {who} has {ours!r}: "
                "use the same settings, or write to another folder"
            )


def _from_json(kind: type, content: dict[str, Any], path: Path) -> Any:
    values = {field.name: content.get(field.name) for field in fields(kind)}
    for field in fields(kind):
        value = values[field.name]
        wrong = type(value) is not field.type or (field.type is int and value < 0)
        if wrong:
            raise OVDError(
                f"manifest {path} has {field.name} {value!r}, which is no valid "
                f"{field.type.__name__}; build the store again"
            )
    return kind(**values)
