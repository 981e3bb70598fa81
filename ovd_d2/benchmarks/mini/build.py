"""Builds the mini benchmark into a folder: sprites, images, annotations, manifest."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ovd_d2.benchmarks.mini.annotations import (
    ImageRecord,
    ObjectRecord,
    box_of_mask,
    coco_annotations,
    image_text_pairs,
    lvis_annotations,
)
from ovd_d2.benchmarks.mini.artwork import Artwork, locate_artwork, render_sprite
from ovd_d2.benchmarks.mini.manifest import (
    expected_manifest,
    images_digest,
    problem_with,
)
from ovd_d2.data.datasets.mini.categories import frequencies, load_categories, load_clutter
from ovd_d2.data.datasets.mini.splits import (
    ANNOTATION_SETS,
    SPLITS,
    STYLES,
    VERSION,
    Split,
    plan_split,
    rng_for,
)
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import missing_folders, remove_empty, write_json
from ovd_d2.files.digests import file_digest

JPEG_QUALITY = 94
_T = TypeVar("_T")
_R = TypeVar("_R")

# What every drawing process holds: sprites and photos by kind of background.
_sprites: dict[str, np.ndarray] = {}
_photos: dict[str, list[np.ndarray]] = {}


def build_mini(
    root: str | Path,
    *,
    jobs: int = 2,
    force: bool = False,
    progress: bool = False,
    limit: int | None = None,
) -> tuple[Path, bool]:
    """Builds ``root``/mini-v1, unless it is there and every checksum agrees.

    The folder appears under its name only when it is complete. The result depends neither on
    ``jobs`` nor on when it is built.

    Args:
        root: folder of all data sets ($DETECTRON2_DATASETS).
        jobs: number of drawing processes.
        force: build anew and replace what is there.
        progress: show progress bars on stderr.
        limit: at most this many images per split, for trials; such a folder is no valid build.

    Returns:
        (the folder, whether it was built by this call).

    Raises:
        OVDError: the folder exists but is not a complete build of this version; artwork is missing.
    """
    root = Path(root).expanduser()
    target = root / VERSION
    if jobs < 1:
        raise OVDError(f"--jobs must be at least 1, got {jobs}")
    if target.exists() and not force:
        problem = problem_with(target)
        if problem is None:
            return target, False
        raise OVDError(
            f"{target} exists but is not a complete {VERSION} ({problem}); run "
            "`ovd mini build --force` to replace it"
        )
    artwork = _with_spinner(locate_artwork, "finding or downloading the artwork", progress)
    with _staging_folder(root) as staging:
        _build_into(staging, artwork, jobs, progress, limit)
        _replace(target, staging)
    return target, True


@contextlib.contextmanager
def _staging_folder(root: Path) -> Iterator[Path]:
    """A temporary folder beside the target; left-overs of killed builds are removed."""
    made = missing_folders(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        for leftover in root.glob(f".{VERSION}.building-*"):
            if not _is_alive(leftover.name.split("-")[-2]):
                shutil.rmtree(leftover, ignore_errors=True)
        prefix = f".{VERSION}.building-{os.getpid()}-"
        staging = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
    except OSError as error:
        raise OVDError(f"cannot write to {root}: {error.strerror}") from error
    try:
        staging.chmod(0o755)
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        remove_empty(made)


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        pass
    return True


def _replace(target: Path, staging: Path) -> None:
    """Renames the finished folder to its name; an old one is moved away first, then removed."""
    old = staging.with_name(staging.name + ".old")
    if target.exists():
        target.rename(old)
    staging.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _build_into(
    folder: Path, artwork: Artwork, jobs: int, progress: bool, limit: int | None
) -> None:
    names = [c.codepoints for c in load_categories()]
    names += [code for codes in load_clutter().values() for code in codes]
    files = {f"{s}/{code}": _sprite_file(artwork, s, code) for s in STYLES for code in names}
    with tempfile.TemporaryDirectory() as scratch:
        sprites_file = Path(scratch) / "sprites.npz"
        drawn = _parallel(_render, list(files.values()), jobs, progress, "rendering artwork")
        np.savez(sprites_file, **dict(zip(files, drawn, strict=True)))
        tasks = []
        for split in SPLITS.values():
            (folder / "images" / split.name).mkdir(parents=True)
            plan = plan_split(split, frequencies())
            tasks += [
                (split, image_id, categories, str(folder))
                for image_id, categories in list(zip(split.image_ids(), plan, strict=True))[:limit]
            ]
        records = _parallel(
            draw_image, tasks, jobs, progress, "drawing images", _load_materials, (sprites_file,)
        )
    by_split: dict[str, list[ImageRecord]] = {name: [] for name in SPLITS}
    for (split, *_), record in zip(tasks, records, strict=True):
        by_split[split.name].append(record)
    _write_annotations(folder, by_split)
    manifest = expected_manifest() | {
        "limit": limit,
        "images": {name: len(split_records) for name, split_records in by_split.items()},
        "images_sha256": images_digest({r.file_name: r.sha256 for r in records}),
        "files_sha256": {
            str(path.relative_to(folder)): file_digest(path)
            for path in sorted([*folder.glob("annotations/*.json"), folder / "pairs.jsonl"])
        },
    }
    write_json(folder / "manifest.json", manifest)  # last: a folder without it is not a built one


def _sprite_file(artwork: Artwork, style: str, codepoints: str) -> Path:
    path = artwork.find(style, codepoints)
    if path is None:
        raise OVDError(
            f"the artwork {style} has no file for {codepoints} in {artwork.folders[style]}; "
            "run `pip install -r requirements/all.txt`"
        )
    return path


def _render(path: Path) -> np.ndarray:
    return render_sprite(path)


def _load_materials(sprites_file: Path) -> None:
    """Fills this process's sprites and photos."""
    from ovd_d2.benchmarks.mini.backgrounds import load_photos

    with np.load(sprites_file, allow_pickle=False) as archive:
        _sprites.update({name: archive[name] for name in archive.files})
    _photos.update({kind: load_photos(kind) for kind in ("train", "eval")})


def draw_image(task: tuple[Split, int, tuple[int, ...], str]) -> ImageRecord:
    """Draws one image, writes it as JPEG below images/, and describes it.

    Args:
        task: split, image id, categories of its objects, folder of the build.
    """
    from PIL import Image

    from ovd_d2.benchmarks.mini.outlines import mask_to_polygons
    from ovd_d2.benchmarks.mini.scenes import compose_scene
    from ovd_d2.data.datasets.mini.captions import image_caption, object_caption

    split, image_id, planned, folder = task
    scene = compose_scene(split, image_id, planned, _sprites, _photos[split.backgrounds])
    buffer = io.BytesIO()
    Image.fromarray(scene.pixels).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    file_name = f"{split.name}/{image_id:06d}.jpg"
    Path(folder, "images", file_name).write_bytes(buffer.getvalue())
    rng = rng_for("caption", split.name, image_id)
    shown = [load_categories()[item.category] for item in scene.objects]
    return ImageRecord(
        image_id=image_id,
        file_name=file_name,
        sha256=hashlib.sha256(buffer.getvalue()).hexdigest(),
        objects=tuple(
            ObjectRecord(
                category=item.category,
                style=item.style,
                bbox=box_of_mask(item.mask),
                area=int(item.mask.sum()),
                polygons=mask_to_polygons(item.mask),
            )
            for item in scene.objects
        ),
        caption=image_caption(rng, shown, scene.place),
        object_captions=tuple(object_caption(rng, category) for category in shown),
    )


def _write_annotations(folder: Path, by_split: dict[str, list[ImageRecord]]) -> None:
    annotations = folder / "annotations"
    annotations.mkdir()
    for name, split_name in ANNOTATION_SETS.items():
        lvis = lvis_annotations(by_split[split_name], base_only=name == "train_base")
        _write_json(annotations / f"{name}.json", lvis)
        _write_json(annotations / f"coco_{name}.json", coco_annotations(lvis))
    lines = [json.dumps(pair) for pair in image_text_pairs(by_split["train"])]
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")


def _parallel(
    function: Callable[[_T], _R],
    items: list[_T],
    jobs: int,
    progress: bool,
    title: str,
    initializer: Callable[..., None] | None = None,
    initargs: tuple[Any, ...] = (),
) -> list[_R]:
    """``[function(item) for item in items]`` in ``jobs`` processes, with a progress bar."""
    from tqdm import tqdm

    def watched(results: Iterable[_R]) -> list[_R]:
        return list(tqdm(results, title, len(items), disable=not progress, smoothing=0.1))

    if jobs == 1:
        if initializer is not None:
            initializer(*initargs)
        return watched(map(function, items))
    # Forked workers need not import torch again; where there is no fork, spawn works too.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else "spawn")
    try:
        with ProcessPoolExecutor(jobs, context, _start_worker, (initializer, *initargs)) as pool:
            return watched(pool.map(function, items, chunksize=8))
    except BrokenProcessPool as error:
        raise OVDError(
            f"a process was killed while {title}, perhaps for lack of memory; "
            "run `ovd mini build --jobs 1`"
        ) from error


def _start_worker(initializer: Callable[..., None] | None, *initargs: object) -> None:
    """Leaves Ctrl-C to the parent, and ends with it even when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    if initializer is not None:
        initializer(*initargs)


def _with_spinner(function: Callable[[], _R], title: str, show: bool) -> _R:
    if not show:
        return function()
    from rich.console import Console

    with Console(stderr=True).status(f"{title} ..."):
        return function()
