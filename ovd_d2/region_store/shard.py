"""One shard: a safetensors file with the regions of some images.

Letters: N images, R regions of all of them, D embedding width.

Tensors: "boxes" (R, 4) float32, "embeddings" (R, D) float16, "row_offsets" (N + 1,) int64 (image n
owns rows ``row_offsets[n]:row_offsets[n + 1]``), "scores" (R,) float32 where the store has scores.
The header's metadata holds "image_ids", a json list of N ints and strings.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import atomic_write

from .manifest import ImageId, ShardEntry, StoreFacts

_REMEDY = (
    "copy it again from the original, or drop it with `ovd regions verify --drop-damaged` "
    "and build again, which fills the gap"
)


@dataclass(frozen=True)
class ShardIndex:
    """Which images a shard holds, and where: ``image_ids`` (N), ``row_offsets`` (N + 1,) int64."""

    image_ids: list[ImageId]
    row_offsets: np.ndarray


def write_shard(
    path: Path, image_ids: list[ImageId], tensors: dict[str, Tensor], row_offsets: list[int]
) -> ShardEntry:
    """Writes a shard: beside its place, flushed to disk, renamed.

    Args:
        path: its place.
        image_ids: N ids.
        tensors: "boxes", "embeddings" and perhaps "scores", on the CPU, of the stored types.
        row_offsets: N + 1.

    Raises:
        OVDError: the file cannot be written, for example because the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save

    arrays = {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}
    arrays["row_offsets"] = np.array(row_offsets, dtype=np.int64)
    try:
        # Not save_file: it writes under a random name first, which a kill would leave behind.
        content = save(arrays, metadata={"image_ids": json.dumps(image_ids)})
        with atomic_write(path) as file:
            file.write(content)
    except (OSError, SafetensorError) as error:
        raise OVDError(f"shard {path} cannot be written ({error}); make room for it") from error
    digest = hashlib.sha256(content).hexdigest()
    return ShardEntry(path.name, len(content), digest, len(image_ids), row_offsets[-1])


def read_index(folder: Path, entry: ShardEntry, facts: StoreFacts) -> ShardIndex:
    """Reads which images a shard holds, without reading its embeddings.

    Raises:
        OVDError: the shard is missing, truncated or not what the manifest says; named.
    """
    path = folder / entry.file
    with _opened(path, entry, "np") as file:
        metadata = file.metadata() or {}
        for name, dtype, shape in _layout(entry, facts):
            found = file.get_slice(name)
            if (found.get_dtype(), list(found.get_shape())) != (dtype, shape):
                raise OVDError(
                    f"shard {path}: {name} is {found.get_dtype()} {found.get_shape()} instead of "
                    f"{dtype} {shape}; {_REMEDY}"
                )
        offsets = file.get_tensor("row_offsets")
    try:
        image_ids = json.loads(metadata["image_ids"])
        valid = len(image_ids) == entry.images and all(type(i) in (int, str) for i in image_ids)
    except (KeyError, ValueError, TypeError, RecursionError):
        valid = False
    if not valid or offsets[0] != 0 or offsets[-1] != entry.regions or (np.diff(offsets) < 0).any():
        raise OVDError(f"shard {path} does not tell which rows belong to which image; {_REMEDY}")
    return ShardIndex(image_ids, offsets)


def map_shard(folder: Path, entry: ShardEntry) -> tuple[Tensor, Tensor, Tensor | None]:
    """Boxes, embeddings and scores (or None) of a shard, as views of the mapped file.

    Raises:
        OVDError: the shard is missing or truncated; named.
    """
    with _opened(folder / entry.file, entry, "pt") as file:
        scores = file.get_tensor("scores") if "scores" in file.keys() else None  # noqa: SIM118
        return file.get_tensor("boxes"), file.get_tensor("embeddings"), scores


class _opened:  # noqa: N801  (used as a statement, like open)
    """``safetensors.safe_open`` whose errors name the shard."""

    def __init__(self, path: Path, entry: ShardEntry, framework: str) -> None:
        self._path, self._entry, self._framework = path, entry, framework

    def __enter__(self) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            size = self._path.stat().st_size
            if size != self._entry.bytes:
                kind = "truncated" if size < self._entry.bytes else "too long"
                raise OVDError(
                    f"shard {self._path} is {kind}: {size} bytes instead of {self._entry.bytes}; "
                    f"{_REMEDY}"
                )
            self._file = safe_open(self._path, framework=self._framework)
            return self._file.__enter__()
        except (OSError, SafetensorError) as error:
            raise self._damaged(error) from error

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        from safetensors import SafetensorError

        self._file.__exit__(kind, error, trace)
        if isinstance(error, SafetensorError):
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> OVDError:
        return OVDError(f"shard {self._path} is missing or damaged ({error}); {_REMEDY}")


def _layout(entry: ShardEntry, facts: StoreFacts) -> list[tuple[str, str, list[int]]]:
    """(tensor, safetensors type, shape) that a shard must have."""
    layout = [
        ("boxes", "F32", [entry.regions, 4]),
        ("embeddings", "F16", [entry.regions, facts.dim]),
        ("row_offsets", "I64", [entry.images + 1]),
    ]
    return layout + ([("scores", "F32", [entry.regions])] if facts.has_scores else [])


def stored(regions_dtype: torch.dtype, tensor: Tensor) -> Tensor:
    """A copy of ``tensor`` on the CPU with the type that a shard holds, contiguous."""
    return torch.empty(tensor.shape, dtype=regions_dtype).copy_(tensor.detach())
