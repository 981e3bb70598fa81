"""The checksums of a built mini benchmark, and the check that a folder is one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ovd_d2.data.datasets.mini.categories import CATEGORIES_FILE
from ovd_d2.data.datasets.mini.splits import REVISION, SEED, SPLITS, VERSION
from ovd_d2.files.digests import file_digest


def images_digest(sha256_of: dict[str, str]) -> str:
    """One sha256 over the names and sha256 of all images, independent of their order."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(sha256_of.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def expected_manifest() -> dict[str, Any]:
    """The entries that must agree with the installed version of the package."""
    return {
        "version": VERSION,
        "revision": REVISION,
        "seed": SEED,
        "categories_sha256": file_digest(CATEGORIES_FILE),
    }


def problem_with(folder: Path) -> str | None:
    """Why ``folder`` is not a complete build of the installed version; None when it is.

    Reads every file once (about a quarter of a second).
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except OSError:
        return "it has no manifest.json"
    except ValueError:
        return "its manifest.json is not valid json"
    if not isinstance(manifest, dict):
        return "its manifest.json is not a manifest"
    for key, value in expected_manifest().items():
        if manifest.get(key) != value:
            return f"its {key} is {manifest.get(key)!r}, not {value!r}"
    if manifest.get("limit") is not None:
        return f"it is a trial with {manifest['limit']} images per split"
    for name, digest in manifest.get("files_sha256", {}).items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if file_digest(path, fresh=True) != digest:
            return f"{name} has changed since it was built"
    return _problem_with_images(folder, manifest.get("images_sha256"))


def _problem_with_images(folder: Path, digest: str | None) -> str | None:
    found = {}
    for split in SPLITS.values():
        for image_id in split.image_ids():
            name = f"{split.name}/{image_id:06d}.jpg"
            path = folder / "images" / name
            if not path.is_file():
                return f"images/{name} is missing"
            found[name] = file_digest(path, fresh=True)
    return None if images_digest(found) == digest else "an image has changed since it was built"
