"""Files of class embeddings: safe to write, and refused by name when wrong or stale.

Letters: K classes, D embedding width.

Own format: ``X.safetensors`` with one tensor "embeddings" (K, D) fp32, beside it the manifest
``X.safetensors.json``: format version, encoder id, names, the tensors' sha256 and how they were
made. Files of other projects (Detic, object-centric-ovd) are ``.npy``, (K, D), fp16, not
normalised; a manifest ``X.npy.json`` with at least "encoder_id" may stand beside them.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import atomic_write
from ovd_d2.files.digests import file_digest

FORMAT_VERSION = 1


def manifest_path(path: Path) -> Path:
    """Where the manifest of an embedding file is: ``X.npy`` -> ``X.npy.json``."""
    return path.with_name(path.name + ".json")


def write_embedding_file(path: Path, embeddings: Tensor, manifest: dict[str, Any]) -> None:
    """Writes ``path`` (.safetensors) and its manifest; a crash at any moment leaves no wrong pair.

    Each file is written beside its place, flushed to disk and renamed. The manifest comes last and
    holds the digest of the tensor file, so a pair of different ages is recognised and refused.

    Args:
        path: ends in .safetensors; its folder is created.
        embeddings: (K, D).
        manifest: facts to add to format version, shape and digest: "encoder_id", "names", ...

    Raises:
        OSError: the folder cannot be written or the disk is full; no part is left behind.
    """
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    content = save({"embeddings": embeddings.detach().cpu().float().contiguous()})
    manifest = {
        **manifest,
        "version": FORMAT_VERSION,
        "shape": list(embeddings.shape),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    for place, data in (
        (path, content),
        (manifest_path(path), json.dumps(manifest, indent=1).encode()),
    ):
        with atomic_write(place) as file:
            file.write(data)


def read_embedding_file(path: Path) -> tuple[Tensor, dict[str, Any]]:
    """Reads and checks a file in either format.

    Returns:
        (K, D) fp32 as stored, finite, not necessarily normalised, no zero row; and the manifest,
        empty for a .npy file that has none. "names", if there, has K entries; "competitors", if
        there, says how many of the last ones only compete.

    Raises:
        OVDError: missing, damaged, of another kind, without manifest, or not what it says.
    """
    if path.suffix not in (".npy", ".safetensors"):
        raise OVDError(f"text embeddings {path} must be a .npy or .safetensors file")
    if not os.path.isfile(path):  # False, too, for names too long to be one
        raise OVDError(f"text embeddings {path} do not exist; give an existing file")
    manifest = _read_manifest(path)
    try:
        content = _read_npy(path) if path.suffix == ".npy" else _read_safetensors(path, manifest)
    except OVDError:
        raise
    except Exception as error:  # damaged headers raise whatever the parser meets
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OVDError(
            f"text embeddings {path} cannot be read ({reason}); copy or build the file again"
        ) from error
    _check_values(path, content)
    if not _name_the_rows(manifest.get("names"), len(content)):
        raise OVDError(
            f"{manifest_path(path)} does not name each of the {len(content)} rows of {path.name} "
            "by a text of its own; build the file again"
        )
    competitors = manifest.get("competitors", 0)
    if type(competitors) is not int or not 0 <= competitors < max(len(content), 1):
        raise OVDError(
            f'{manifest_path(path)}: "competitors" is {competitors!r}, but it counts some of the '
            f"{len(content)} rows of {path.name}; build the file again"
        )
    return content, manifest


def _name_the_rows(names: Any, count: int) -> bool:
    """Whether ``names`` are ``count`` distinct texts, or not given (None)."""
    if names is None:
        return True
    texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return texts and len(set(names)) == len(names) == count


def _read_manifest(path: Path) -> dict[str, Any]:
    file = manifest_path(path)
    if not os.path.isfile(file):
        if path.suffix == ".npy":
            return {}
        raise OVDError(f"text embeddings {path} lack their manifest {file.name}; build them again")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        json.dumps(manifest, ensure_ascii=False).encode()  # ValueError: half a surrogate pair
    except (OSError, ValueError, RecursionError) as error:
        raise OVDError(f"manifest {file} cannot be read ({error}); build it again") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("encoder_id"), str):
        raise OVDError(f"manifest {file} does not say its encoder_id; build it again")
    if manifest.get("version", FORMAT_VERSION) != FORMAT_VERSION:
        raise OVDError(
            f"manifest {file} has format version {manifest['version']!r}, "
            f"this program reads {FORMAT_VERSION}; build the embeddings again"
        )
    digest = manifest.get("sha256")
    if digest is None and path.suffix == ".npy":
        return manifest
    if digest != file_digest(path, fresh=True):
        raise OVDError(
            f"text embeddings {path} do not match the sha256 in {file.name}: one of the two is "
            "stale; build them again"
        )
    return manifest


def _read_npy(path: Path) -> Tensor:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        kind = getattr(array, "dtype", "an archive of arrays")
        raise OVDError(f"text embeddings {path} hold {kind}, not one array of floating point")
    with np.errstate(over="ignore"):  # float64 beyond fp32 is inf, and refused as such
        return torch.from_numpy(np.array(array, dtype=np.float32))


def _read_safetensors(path: Path, manifest: dict[str, Any]) -> Tensor:
    from safetensors.torch import load_file

    content = load_file(path)
    if set(content) != {"embeddings"}:
        raise OVDError(f"text embeddings {path} must hold one tensor 'embeddings'; build it again")
    embeddings = content["embeddings"]
    if not embeddings.is_floating_point():
        raise OVDError(f"text embeddings {path} hold {embeddings.dtype}, not floating point")
    if list(embeddings.shape) != manifest.get("shape", list(embeddings.shape)):
        raise OVDError(f"text embeddings {path} have another shape than their manifest says")
    return embeddings.float()


def _check_values(path: Path, embeddings: Tensor) -> None:
    if embeddings.ndim != 2 or 0 in embeddings.shape:
        raise OVDError(
            f"text embeddings {path} have shape {tuple(embeddings.shape)}; "
            "they must be (classes, dimensions)"
        )
    bad = ~embeddings.isfinite().all(dim=1)
    if bad.any():
        raise OVDError(
            f"text embeddings {path} hold nan or inf in row {int(bad.nonzero()[0])}; "
            "build the file again"
        )
    zero = ~embeddings.any(dim=1)
    if zero.any():
        raise OVDError(
            f"text embeddings {path} are all zero in row {int(zero.nonzero()[0])}, which has no "
            "direction; build the file again"
        )
